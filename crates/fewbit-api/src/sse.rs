//! Server-sent events, as far as the interfaces use them.
//!
//! ```text
//! data: {json}\n\n     a chunk
//! event: name\ndata: {json}\n\n     an event of Responses and Messages
//! : keep-alive\n\n     a comment, so that nothing between takes the connection for dead
//! data: [DONE]\n\n     the end
//! ```

use serde::Serialize;

/// The end of a stream.
pub const DONE: &str = "data: [DONE]\n\n";

/// Says that the server is still there.
pub const KEEP_ALIVE: &str = ": keep-alive\n\n";

/// A chunk. JSON as `serde_json` writes it has no line breaks, so one line it is.
///
/// # Errors
/// If the value cannot be JSON.
pub fn data(value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(format!("data: {}\n\n", serde_json::to_string(value)?))
}

/// An event with a name, as Responses and Messages have them.
///
/// # Errors
/// If the value cannot be JSON.
pub fn event(name: &str, value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(format!("event: {name}\ndata: {}\n\n", serde_json::to_string(value)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn a_chunk_is_one_line() {
        assert_eq!(super::data(&json!({ "text": "a\nb\r" })).unwrap(), "data: {\"text\":\"a\\nb\\r\"}\n\n");
    }
}
