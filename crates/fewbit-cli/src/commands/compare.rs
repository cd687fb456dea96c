//! `fewbit compare`: measures size, speed and quality of a model quantized to several types, with
//! `fewbit::evaluate::Compare`. Prints a table or JSON, or draws a plot.

use std::fs;

use anyhow::{Context, bail};
use fewbit::evaluate::{Compare, Comparison, Row};
use plotters::prelude::*;
use serde_json::{Value, json};

use crate::args::{Common, CompareArgs};
use crate::loading::{load, load_quantized, text_of, windows};
use crate::output::{Out, bytes, print_json, progress_bar};

const HEAD: [&str; 9] =
    ["type", "size", "bits", "perplexity", "ln PPL ratio", "KL div.", "same top", "prefill/s", "decode/s"];

fn cells(row: &Row) -> [String; 9] {
    let with_error = |value: f64, error: f64, digits: usize| match row.recipe {
        Some(_) => format!("{value:.digits$} ±{error:.digits$}"),
        None => format!("{value:.digits$}"),
    };
    [
        row.name().to_owned(),
        bytes(row.weight_bytes),
        format!("{:.2}", row.bits_per_weight),
        format!("{:.3} ±{:.3}", row.perplexity, row.perplexity_stderr),
        with_error(row.ln_ppl_ratio, row.ln_ppl_ratio_stderr, 4),
        with_error(row.kl, row.kl_stderr, 5),
        format!("{} %", with_error(100.0 * row.top1, 100.0 * row.top1_stderr, 2)),
        format!("{:.0}", row.prefill_tokens_per_s),
        format!("{:.1}", row.decode_tokens_per_s),
    ]
}

fn row_json(row: &Row) -> Value {
    json!({
        "type": row.name(),
        "bytes": row.weight_bytes,
        "bits_per_weight": row.bits_per_weight,
        "ppl": row.perplexity,
        "ppl_stderr": row.perplexity_stderr,
        "ln_ppl_ratio": row.ln_ppl_ratio,
        "ln_ppl_ratio_stderr": row.ln_ppl_ratio_stderr,
        "kl_divergence": row.kl,
        "kl_divergence_stderr": row.kl_stderr,
        "top1_agreement": row.top1,
        "top1_agreement_stderr": row.top1_stderr,
        "prefill_tok_s": row.prefill_tokens_per_s,
        "decode_tok_s": row.decode_tokens_per_s,
    })
}

pub(crate) fn run(common: &Common, args: &CompareArgs) -> anyhow::Result<()> {
    let text = text_of(&args.file)?;
    let is_html = match args.plot.as_deref().map(|path| path.extension().and_then(|ext| ext.to_str())) {
        None | Some(Some("svg")) => false,
        Some(Some("html")) => true,
        Some(_) => bail!("a plot is a .svg or a .html file"),
    };
    let original = load(common, &args.model.model)?;
    let bar = progress_bar("{msg:>10} {wide_bar} {pos}/{len} windows, {eta} left");
    let compare = Compare::new(&original, &*args.types)
        .windows(windows(args.ctx, args.chunks))
        .load_with(|recipe| load_quantized(common, original.path(), recipe))
        .on_progress(|what, done, n| {
            bar.set_message(what.to_owned());
            bar.set_length(n as u64);
            bar.set_position(done as u64);
        });
    let found = compare.run(&text)?;
    bar.finish_and_clear();

    let name = original.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(path) = &args.plot {
        let svg = plot(&name, &found.rows)?;
        let whole = if is_html { html(&name, &found.rows, &svg) } else { svg };
        fs::write(path, whole).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if common.json {
        return print_json(&json!({
            "model": name,
            "ctx": args.ctx,
            "chunks": found.windows,
            "tokens_scored": found.tokens_scored,
            "rows": found.rows.iter().map(row_json).collect::<Vec<_>>(),
        }));
    }
    table(&found)
}

/// Prints a table whose columns are as wide as their content.
fn table(found: &Comparison) -> anyhow::Result<()> {
    let lines: Vec<[String; 9]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(found.rows.iter().map(cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let mut out = Out::new();
    for line in &lines {
        let name = format!("{:<width$}", line[0], width = width(0));
        out.line(
            (1..line.len())
                .fold(name, |text, column| text + &format!("  {:>width$}", line[column], width = width(column))),
        )?;
    }
    out.flush()
}

/// Draws a plot of size against divergence, with a point for each quantized model.
fn plot(name: &str, rows: &[Row]) -> anyhow::Result<String> {
    // The original model has a divergence of 0, which a logarithmic axis cannot show.
    let least = rows.iter().map(|row| row.kl).filter(|&kl| kl > 0.0).fold(f64::INFINITY, f64::min).min(1.0);
    let most = rows.iter().map(|row| row.kl).fold(least, f64::max);
    let megabytes = |row: &Row| row.weight_bytes as f64 / 1e6;
    let widest = rows.iter().map(megabytes).fold(1e-3, f64::max);
    let points = rows.iter().filter(|row| row.kl > 0.0).map(|row| (megabytes(row), row.kl, row.name()));
    let mut svg = String::new();
    let drawn = (|| -> Result<(), plotters::drawing::DrawingAreaErrorKind<std::io::Error>> {
        let root = SVGBackend::with_string(&mut svg, (860, 520)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(name, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(80)
            .build_cartesian_2d(0.0..widest * 1.15, (least / 2.0..most * 2.0).log_scale())?;
        chart.configure_mesh().x_desc("MB of weights").y_desc("mean KL divergence from the original").draw()?;
        chart.draw_series(points.map(|(x, y, name)| {
            EmptyElement::at((x, y))
                + Circle::new((0, 0), 4, BLUE.filled())
                + Text::new(name, (8, -6), ("sans-serif", 14))
        }))?;
        root.present()
    })();
    drawn.map_err(|error| anyhow::anyhow!("the plot cannot be drawn: {error}"))?;
    Ok(svg)
}

/// A page with the table and the plot.
fn html(name: &str, rows: &[Row], svg: &str) -> String {
    let line = |tag: &str, cells: [String; 9]| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let table: String = rows.iter().map(|row| line("td", cells(row))).collect();
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>body {{ font-family: sans-serif }} \
         td, th {{ text-align: right; padding: 2px 12px }}</style>\n<h1>{title}</h1>\n<table>\n{}{table}</table>\n{svg}\n",
        line("th", HEAD.map(str::to_owned)),
        title = escaped(name),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/stories260K-f32.gguf");

    #[test]
    fn plot_names_the_model_and_its_quantized_types() {
        let model = fewbit::Model::builder().threads(1).load_file(STORIES).expect("a model");
        let types = [fewbit::quantize::Recipe::Q8_0, fewbit::quantize::Recipe::Q4_K_M];
        let text = "Once upon a time there was a little dog. ".repeat(40);
        let found = Compare::new(&model, types).windows(windows(32, Some(2))).run(&text).expect("measured");
        let svg = plot("<model>", &found.rows).expect("drawn");
        assert!(svg.starts_with("<svg") && svg.contains("Q4_K_M") && svg.contains("Q8_0"), "{svg}");
        assert!(!svg.contains("<model>") && !svg.contains(">\noriginal"), "names are text");
        let page = html("<model>", &found.rows, &svg);
        assert!(page.contains("<h1>&lt;model&gt;</h1>") && page.contains("<td>Q8_0</td>") && page.contains("</svg>"));
        // With no quantized model that differs, the plot is empty.
        assert!(plot("model", &found.rows[..1]).expect("drawn").contains("</svg>"));
    }
}
