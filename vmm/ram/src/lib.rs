//! Host memory behind a guest: backings, their release calls and their sources of truth.
