//! Draws the pictures of README: a chart of the tables in docs/speed.md, and the program in a terminal.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, ensure};

use crate::shell;

/// The contents of the terminal: arguments of the program, and how many of its last lines to show.
const COMMANDS: [(&[&str], Option<usize>); 3] = [
    (&["run", "smollm2-135m-instruct", "Why is the sky blue?", "--max-tokens", "80", "--seed", "1"], None),
    (&["run", "smollm2-135m-instruct", "Name a colour.", "--regex", "(red|green|blue)", "--seed", "1"], None),
    (&["inspect", "smollm2-135m-instruct"], Some(8)),
];

/// Columns of the terminal.
const COLUMNS: usize = 100;

/// Writes `docs/images/speed.svg` and `docs/images/terminal.svg`.
pub(crate) fn run() -> Result<()> {
    let docs = shell::root().join("docs");
    let images = docs.join("images");
    fs::create_dir_all(&images).context("docs/images")?;
    let text = fs::read_to_string(docs.join("speed.md")).context("docs/speed.md")?;
    fs::write(images.join("speed.svg"), chart(&text)?)?;
    fs::write(images.join("terminal.svg"), terminal()?)?;
    Ok(())
}

/// A model of a table: its name, and how many times llama.cpp's speed it has in prefill and in decode.
struct Row {
    name: String,
    prefill: f64,
    decode: f64,
}

/// The rows of a table of docs/speed.md that have all figures. `columns` are the indices of: prefill, llama.cpp's
/// prefill, decode, llama.cpp's decode.
fn rows(table: &str, columns: [usize; 4]) -> Vec<Row> {
    let of_line = |line: &str| {
        let cells: Vec<_> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let figure = |i: usize| mean(cells.get(columns[i])?);
        let [prefill, their_prefill, decode, their_decode] = [figure(0)?, figure(1)?, figure(2)?, figure(3)?];
        let name = cells[0].split('(').next()?.trim().to_owned();
        Some(Row { name, prefill: prefill / their_prefill, decode: decode / their_decode })
    };
    table.lines().filter_map(of_line).collect()
}

/// The figure in a cell such as `42.8 (88 % of reading)`; for a range such as `46-58`, its middle.
fn mean(cell: &str) -> Option<f64> {
    let figures =
        cell.split(' ').next()?.split('-').map(|part| part.parse::<f64>().ok()).collect::<Option<Vec<_>>>()?;
    Some(figures.iter().sum::<f64>() / figures.len() as f64)
}

/// The table whose header begins with this text, up to the next empty line.
fn table<'a>(text: &'a str, head: &str) -> Result<&'a str> {
    let start = text.find(head).with_context(|| format!("docs/speed.md has no table {head:?}"))?;
    Ok(text[start..].split("\n\n").next().unwrap_or_default())
}

fn chart(text: &str) -> Result<String> {
    let intel = rows(table(text, "| | prefill 512 | llama.cpp | decode | llama.cpp |")?, [1, 2, 3, 4]);
    let amd = rows(table(text, "| | prefill 512 | of the peak | llama.cpp |")?, [1, 3, 4, 6]);
    let both: Vec<(&Row, &Row)> =
        intel.iter().filter_map(|a| Some((a, amd.iter().find(|b| b.name.starts_with(&a.name))?))).collect();
    ensure!(both.len() >= 4, "docs/speed.md has {} models with figures of both machines", both.len());
    let largest = both.iter().flat_map(|(a, b)| [a.prefill, a.decode, b.prefill, b.decode]).fold(1.0, f64::max);

    let (label, width, line, top) = (130.0, 300.0, 17.0, 64.0);
    let height = top + both.len() as f64 * line * 2.6 + 30.0;
    let mut svg = open_svg(2.0 * (width + 60.0) + label, height, "#ffffff");
    let mut text = |x: f64, y: f64, size: u32, anchor: &str, text: &str| {
        write!(
            svg,
            r##"<text x="{x:.0}" y="{y:.0}" font-size="{size}" text-anchor="{anchor}" fill="#222">{text}</text>"##
        )
    };
    text(16.0, 24.0, 15, "start", "Tokens per second, as a multiple of llama.cpp's (two virtual cores)")?;
    let mut bars = String::new();
    type Figure = fn(&Row) -> f64;
    let panels: [(&str, Figure); 2] = [("prefill, 512 tokens", |row| row.prefill), ("decode", |row| row.decode)];
    for (panel, (title, of)) in panels.into_iter().enumerate() {
        let x = label + panel as f64 * (width + 60.0);
        text(x, 48.0, 13, "start", title)?;
        for (i, (intel, amd)) in both.iter().enumerate() {
            let y = top + i as f64 * line * 2.6;
            if panel == 0 {
                text(label - 10.0, y + line + 4.0, 13, "end", &intel.name)?;
            }
            for (k, (row, color)) in [(intel, "#2563a8"), (amd, "#d9822b")].into_iter().enumerate() {
                let (bar, y) = (of(row) / largest * width, y + k as f64 * line);
                write!(bars, r#"<rect x="{x}" y="{y:.1}" width="{bar:.1}" height="{}" fill="{color}"/>"#, line - 2.0)?;
                text(x + bar + 5.0, y + 12.0, 12, "start", &format!("{:.1}", of(row)))?;
            }
        }
        let one = x + width / largest;
        let bottom = height - 30.0;
        write!(bars, r##"<path d="M{one:.1} {}V{bottom:.0}" stroke="#222" stroke-dasharray="3 3"/>"##, top - 6.0)?;
        text(one, bottom + 14.0, 12, "middle", "llama.cpp")?;
    }
    let y = height - 12.0;
    text(16.0, y, 12, "start", r##"<tspan fill="#2563a8">■</tspan> Intel <tspan fill="#d9822b">■</tspan> AMD"##)?;
    Ok(svg + &bars + "</svg>\n")
}

fn terminal() -> Result<String> {
    shell::run(&shell::cargo(), &["build", "--release", "--quiet", "-p", "fewbit-cli"])?;
    let program = shell::target().join("release/fewbit");
    let mut lines = Vec::new();
    for (args, last) in COMMANDS {
        let is_plain = |arg: &str| arg.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/".contains(&b));
        let shown = args.iter().map(|arg| if is_plain(arg) { (*arg).to_owned() } else { format!("{arg:?}") });
        let mut command = format!("$ fewbit {}", shown.collect::<Vec<_>>().join(" "));
        if let Some(n) = last {
            write!(command, " | tail -n {n}")?;
        }
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.push(command);
        let out = shell::command(&program).args(args).output().with_context(|| program.display().to_string())?;
        ensure!(out.status.success(), "fewbit {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8_lossy(&out.stdout);
        let all: Vec<&str> = text.trim_end().lines().collect();
        let first = all.len().saturating_sub(last.unwrap_or(all.len()));
        all.get(first..).unwrap_or_default().iter().for_each(|line| wrap(line, &mut lines));
    }
    let (column, line) = (8.4, 19.0);
    let mut svg = open_svg(COLUMNS as f64 * column + 32.0, lines.len() as f64 * line + 56.0, "#16181d");
    for (x, color) in [(22, "#ff5f57"), (42, "#febc2e"), (62, "#28c840")] {
        write!(svg, r#"<circle cx="{x}" cy="20" r="6" fill="{color}"/>"#)?;
    }
    svg += r#"<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="14" xml:space="preserve">"#;
    for (i, text) in lines.iter().enumerate() {
        let color = if text.starts_with("$ ") { "#8fd18f" } else { "#dfe2e7" };
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        write!(svg, r#"<text x="16" y="{:.0}" fill="{color}">{text}</text>"#, 56.0 + i as f64 * line)?;
    }
    Ok(svg + "</g></svg>\n")
}

/// Wraps a line at spaces to the width of the terminal.
fn wrap(line: &str, lines: &mut Vec<String>) {
    let mut rest = line;
    while rest.chars().count() > COLUMNS {
        let limit = rest.char_indices().nth(COLUMNS).map_or(rest.len(), |(at, _)| at);
        let at = rest[..limit].rfind(' ').filter(|at| *at > 0).unwrap_or(limit);
        lines.push(rest[..at].to_owned());
        rest = rest[at..].trim_start();
    }
    lines.push(rest.to_owned());
}

fn open_svg(width: f64, height: f64, background: &str) -> String {
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" font-family="system-ui, sans-serif"><rect width="100%" height="100%" rx="8" fill="{background}"/>"#
    )
}
