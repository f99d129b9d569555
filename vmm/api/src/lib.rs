//! Request and response types of the control socket, its OpenAPI document and a client.
