//! The framing of server-sent events, as far as the interfaces use it.
//!
//! ```text
//! data: {json}\n\n     a chunk
//! event: name\ndata: {json}\n\n     a named event of Responses and Messages
//! : keep-alive\n\n     a comment, so that proxies do not close an idle connection
//! data: [DONE]\n\n     the end of the stream
//! ```

use serde::Serialize;

/// The last event of a stream of chats or completions.
pub const DONE: &str = "data: [DONE]\n\n";

/// A comment that keeps an idle connection open.
pub const KEEP_ALIVE: &str = ": keep-alive\n\n";

/// Formats a chunk. It is a single line, because `serde_json` writes no line breaks.
///
/// # Errors
/// If the value cannot be serialized as JSON.
pub fn data(value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(format!("data: {}\n\n", serde_json::to_string(value)?))
}

/// Formats a named event, as Responses and Messages use them.
///
/// # Errors
/// If the value cannot be serialized as JSON.
pub fn event(name: &str, value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(format!("event: {name}\ndata: {}\n\n", serde_json::to_string(value)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn event_data_is_written_on_one_line() {
        assert_eq!(super::data(&json!({ "text": "a\nb\r" })).unwrap(), "data: {\"text\":\"a\\nb\\r\"}\n\n");
    }
}
