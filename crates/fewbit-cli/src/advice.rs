//! Advice on flags and commands for errors of the libraries, which do not know the command line.

use fewbit::expert::tokenizer::TokenizerError;
use fewbit::hub::HubError;
use fewbit::quantize::QuantizeError;
use fewbit::{Error, ErrorKind};

/// The flag or command that helps with this error, if one does.
pub(crate) fn on(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|error| {
        let of_library = error.downcast_ref::<Error>().and_then(|error| of_kind(error.kind()));
        let of_cause = || {
            None.or_else(|| error.downcast_ref().and_then(of_hub))
                .or_else(|| error.downcast_ref().and_then(of_tokenizer))
                .or_else(|| error.downcast_ref().and_then(of_quantizing))
        };
        let of_cause = of_library.or_else(of_cause);
        #[cfg(feature = "serve")]
        let of_cause = of_cause
            .or_else(|| error.downcast_ref().and_then(of_serving))
            .or_else(|| error.downcast_ref().and_then(of_keys));
        of_cause
    })
}

fn of_kind(kind: &ErrorKind) -> Option<String> {
    let text = match kind {
        ErrorKind::NoChatTemplate => "--raw takes the prompt as it is",
        _ => return None,
    };
    Some(text.to_owned())
}

fn of_hub(error: &HubError) -> Option<String> {
    match error {
        HubError::NoGguf { tag, .. } => Some(format!("--quantize {tag}")),
        HubError::NotInPlace { .. } => Some("`fewbit list --all`".to_owned()),
        _ => None,
    }
}

fn of_tokenizer(error: &TokenizerError) -> Option<String> {
    let takes_a_name = match error {
        TokenizerError::MissingPre | TokenizerError::UnknownPre { .. } => true,
        TokenizerError::NoGgufForm { what, .. } => what.contains("TokenizerOptions::pre"),
        _ => false,
    };
    takes_a_name.then(|| "--pre NAME".to_owned())
}

fn of_quantizing(error: &QuantizeError) -> Option<String> {
    matches!(error, QuantizeError::Requantize { .. }).then(|| "--allow-requantize".to_owned())
}

#[cfg(feature = "serve")]
fn of_serving(error: &fewbit_serve::ServeError) -> Option<String> {
    matches!(error, fewbit_serve::ServeError::Open { .. }).then(|| "`--api-key-file FILE` with a key a line".to_owned())
}

#[cfg(feature = "serve")]
fn of_keys(error: &fewbit_gateway::GatewayError) -> Option<String> {
    matches!(error, fewbit_gateway::GatewayError::NoSuchKey { .. }).then(|| "`fewbit keys list`".to_owned())
}
