//! The body of every refused request.

use serde::{Deserialize, Serialize};

/// Why a request was refused, in Firecracker's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// One sentence for a person.
    pub fault_message: String,
}

impl Fault {
    /// A fault that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { fault_message: message.into() }
    }
}
