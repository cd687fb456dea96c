//! Roles of the authors of messages.

use std::fmt;

/// The role of a message's author. It can be compared with strings and created from them.
///
/// ```
/// use fewbit_tokenizer::{Message, Role};
///
/// assert_eq!(Message::user("Hi.").role, Role::User);
/// assert_eq!(Role::User, "user");
/// assert_eq!(Role::from("ipython").as_str(), "ipython");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Role {
    /// Instructions that precede the conversation.
    System,
    /// The user.
    #[default]
    User,
    /// The model.
    Assistant,
    /// The result of a call.
    Tool,
    /// Any other role that the template knows, by name.
    Other(String),
}

impl Role {
    /// The name in templates.
    pub fn as_str(&self) -> &str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
            Self::Other(name) => name,
        }
    }
}

impl From<String> for Role {
    fn from(name: String) -> Self {
        match name.as_str() {
            "system" => Self::System,
            "user" => Self::User,
            "assistant" => Self::Assistant,
            "tool" => Self::Tool,
            _ => Self::Other(name),
        }
    }
}

impl From<&str> for Role {
    fn from(name: &str) -> Self {
        name.to_owned().into()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq<str> for Role {
    fn eq(&self, name: &str) -> bool {
        self.as_str() == name
    }
}

impl PartialEq<&str> for Role {
    fn eq(&self, name: &&str) -> bool {
        self.as_str() == *name
    }
}
