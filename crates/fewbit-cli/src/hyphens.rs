//! Support for texts that begin with a hyphen: `fewbit run MODEL "- one item"`.
//!
//! No option contains a space, so an argument with a space is a text, unless it is `--option=VALUE` or the value of an
//! option. clap cannot be told this, but it takes everything after `--` literally. So if there is such a text, options
//! are moved before a `--`, and everything else is moved after it, in the same order.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

/// Reorders arguments so that clap does not take texts for options.
pub(crate) fn sorted(program: &Command, args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let args: Vec<OsString> = args.collect();
    let is_text = |arg: &OsStr| {
        let arg = arg.to_string_lossy();
        let name = arg.split('=').next().unwrap_or_default();
        arg.starts_with('-')
            && arg.contains(char::is_whitespace)
            && !(arg.contains('=') && name.starts_with("--") && !name.contains(char::is_whitespace))
    };
    if !args.iter().any(|arg| is_text(arg)) {
        return args;
    }
    let global: Vec<&Arg> = program.get_arguments().collect();
    let mut command: Option<&Command> = None;
    let (mut options, mut others, mut has_text) = (Vec::new(), Vec::new(), false);
    let mut rest = args.iter().cloned();
    options.extend(rest.next());
    while let Some(arg) = rest.next() {
        let text = arg.to_string_lossy().into_owned();
        if text == "--" {
            others.extend(rest);
            break;
        }
        if is_text(&arg) && command.is_some() {
            has_text = true;
            others.push(arg);
        } else if text.len() > 1 && text.starts_with('-') {
            let own = command.into_iter().flat_map(Command::get_arguments);
            let takes_next = own.chain(global.iter().copied()).any(|known| takes_next(known, &text));
            options.push(arg);
            if takes_next {
                options.extend(rest.next());
            }
        } else if command.is_none() {
            command = program.find_subcommand(&text);
            options.push(arg);
        } else {
            others.push(arg);
        }
    }
    if !has_text {
        return args;
    }
    options.push("--".into());
    options.extend(others);
    options
}

/// Whether `text` is the option `known` with its value in the next argument.
fn takes_next(known: &Arg, text: &str) -> bool {
    let names = || known.get_long().into_iter().chain(known.get_all_aliases().unwrap_or_default());
    let is_it = match text.strip_prefix("--") {
        Some(name) => names().any(|known| known == name),
        // `-vn 5`: the last of several short ones takes the value.
        None => text.chars().next_back().is_some_and(|last| known.get_short() == Some(last)),
    };
    is_it && known.get_action().takes_values()
}

#[cfg(test)]
mod tests {
    use super::sorted;
    use crate::args::{Cli, Command};
    use clap::{CommandFactory, Parser};

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        let args = ["fewbit"].iter().chain(args).map(Into::into);
        Cli::try_parse_from(sorted(&Cli::command(), args))
    }

    fn run(args: &[&str]) -> (String, String, Option<String>, usize) {
        match parse(args).unwrap().command {
            Command::Run(run) => (run.model.model, run.prompt, run.system, run.sampling.max_tokens),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn text_arguments_may_begin_with_a_hyphen() {
        let of = |prompt: &str, n| ("m".to_owned(), prompt.to_owned(), None, n);
        assert_eq!(run(&["run", "m", "- one item"]), of("- one item", 1024));
        assert_eq!(run(&["run", "m", "-n is negative", "-n", "3"]), of("-n is negative", 3));
        assert_eq!(run(&["--json", "run", "-n", "3", "m", "--raw is an option"]), of("--raw is an option", 3));
        assert_eq!(run(&["run", "m", "--- a/x\n+++ b/x", "--raw"]), of("--- a/x\n+++ b/x", 1024));
        assert_eq!(run(&["run", "m", "--raw", "--", "-x"]), of("-x", 1024));
        assert_eq!(run(&["run", "m", "-5"]), of("-5", 1024));
        assert_eq!(run(&["run", "m", "-"]), of("-", 1024));
        let system = run(&["run", "m", "- a b", "--system", "- Be brief"]);
        assert_eq!((system.1.as_str(), system.2.as_deref()), ("- a b", Some("- Be brief")));
        assert_eq!(run(&["run", "m", "x", "--system=- Be brief"]).2.as_deref(), Some("- Be brief"));
        match parse(&["embed", "m", "a", "- b c", "--no-normalize", "d", "-f", "file"]).unwrap().command {
            Command::Embed(embed) => {
                assert_eq!(embed.texts, ["a", "- b c", "d"]);
                assert!(embed.no_normalize && embed.file.is_some());
            }
            other => panic!("{other:?}"),
        }
        match parse(&["run", "m", "x", "--stop", "---", "--stop", "-", "--regex", "-?[0-9]+"]).unwrap().command {
            Command::Run(run) => {
                assert_eq!(run.sampling.stop, ["---", "-"]);
                assert_eq!(run.constraint.regex.as_deref(), Some("-?[0-9]+"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unknown_options_are_still_usage_errors() {
        for args in [
            &["run", "m", "x", "--mx-tokens", "5"][..],
            &["run", "m", "- a b", "--mx-tokens", "5"],
            &["run", "m", "--mx-tokens"],
        ] {
            let error = parse(args).unwrap_err().to_string();
            assert!(error.contains("--mx-tokens") && error.contains("--max-tokens"), "{error}");
        }
        assert!(parse(&["run", "m", "-x"]).is_err());
        assert!(parse(&["run", "m", "- a b", "more"]).is_err());
        assert!(parse(&["run", "- a b"]).unwrap_err().to_string().contains("PROMPT"));
    }
}
