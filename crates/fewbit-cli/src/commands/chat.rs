//! `fewbit chat`: a conversation on the terminal.
//!
//! Ctrl-C during an answer only ends the answer; at the prompt it clears the line. With input from a pipe, each line is
//! a message. With `--json`, the whole conversation is printed at its end. Nothing that is typed is stored on disk.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use fewbit::Chat;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};

use super::run::{completion_json, summary};
use crate::args::{ChatArgs, Common};
use crate::loading::{check_sampling, constraint, load, load_draft, options, without_bom};
use crate::output::{Out, note, one_line, print_json};
use crate::signals;

const HELP: &str = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer";

pub(crate) fn run(common: &Common, args: &ChatArgs) -> anyhow::Result<()> {
    check_sampling(&args.sampling)?;
    let constraint = constraint(&args.constraint)?;
    let model = load(common, &args.model.model)?;
    let mut builder = model.chat().options(options(&args.sampling));
    if let Some(system) = &args.system {
        builder = builder.system(system);
    }
    for (name, value) in &args.template_var {
        builder = builder.template_var(name, value.clone());
    }
    if let Some(n) = args.reasoning_budget {
        builder = builder.reasoning_budget(n);
    }
    if let Some(name) = &args.draft {
        builder = builder.draft(&load_draft(common, name)?);
    }
    if let Some(constraint) = constraint {
        builder = builder.constraint(constraint);
    }
    let mut chat = builder.start()?;

    let stop = Arc::new(AtomicBool::new(false));
    signals::interrupt_sets(&stop);

    let interactive = std::io::stdin().is_terminal() && !common.json;
    if interactive {
        note(format_args!("{HELP}"));
    }
    let mut input = Input::new(interactive)?;
    let mut turns: Vec<Value> = Vec::new();
    while let Some(line) = input.next_line()? {
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/clear" => chat.clear(),
            "/help" => note(format_args!("{HELP}")),
            message => {
                stop.store(false, Ordering::Relaxed);
                if let Some(turn) = answer(&mut chat, message, common, &stop, interactive)? {
                    turns.push(turn);
                }
            }
        }
    }
    if common.json {
        let messages: Vec<Value> = chat
            .messages()
            .iter()
            .map(|message| json!({ "role": message.role.to_string(), "content": message.content }))
            .collect();
        print_json(&json!({ "messages": messages, "turns": turns }))?;
    }
    Ok(())
}

/// One turn. If a message cannot be answered (for example because it is too long), the error is reported, and an
/// interactive conversation continues.
fn answer(
    chat: &mut Chat,
    message: &str,
    common: &Common,
    stop: &AtomicBool,
    interactive: bool,
) -> anyhow::Result<Option<Value>> {
    let mut out = Out::new();
    let result: Result<_, fewbit::Error> = (|| {
        let mut stream = chat.send_stream(message)?;
        let mut written = Ok(());
        for piece in stream.by_ref() {
            let piece = piece?;
            if !common.json {
                crate::output::reasoning(&piece.reasoning);
            }
            if !common.json && !piece.text.is_empty() {
                written = out.text(&piece.text).and_then(|()| out.flush());
            }
            if written.is_err() || stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok((stream.into_completion(), written))
    })();
    match result {
        Ok((completion, written)) => {
            written?;
            if common.json {
                return Ok(Some(completion_json(&completion)));
            }
            out.line("")?;
            out.flush()?;
            if common.verbose > 0 {
                summary(&completion);
            }
            Ok(None)
        }
        Err(error) if interactive => {
            note(format_args!("error: {}", one_line(&error.into())));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The source of messages: the terminal, with line editing, or a pipe.
enum Input {
    Terminal(Box<DefaultEditor>),
    /// The lines, and whether the next one is the first.
    Pipe(std::io::Lines<std::io::StdinLock<'static>>, bool),
}

impl Input {
    fn new(interactive: bool) -> anyhow::Result<Self> {
        if interactive {
            return Ok(Self::Terminal(Box::new(DefaultEditor::new().context("cannot use the terminal")?)));
        }
        Ok(Self::Pipe(std::io::BufRead::lines(std::io::stdin().lock()), true))
    }

    /// Reads the next line; `None` at the end.
    fn next_line(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Pipe(lines, is_first) => {
                let line = lines.next().transpose().context("cannot read stdin")?;
                Ok(line.map(|line| without_bom(line, std::mem::take(is_first))))
            }
            Self::Terminal(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        // The history is only for the arrow keys, and stays in memory.
                        let _ = editor.add_history_entry(line.as_str());
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("cannot read the terminal"),
                }
            },
        }
    }
}
