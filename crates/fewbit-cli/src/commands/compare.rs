//! `fewbit compare`: what quantizing a model costs and what it gives, type by type. The original stays in memory, each
//! quantized one beside it in turn.

use std::fs;

use anyhow::{Context, bail};
use fewbit::tokenizer::SpecialTokens;
use fewbit::{Model, Prompt};
use plotters::prelude::*;
use serde_json::json;

use crate::args::{Common, CompareArgs};
use crate::loading::{load, load_quantized, text_of, windows};
use crate::output::{Out, bytes, print_json, progress_bar};

/// Tokens that are generated to measure the speed of decoding.
const DECODED: usize = 32;

/// One model.
struct Row {
    name: String,
    n_bytes: u64,
    bits_per_weight: f64,
    perplexity: f64,
    kl: f64,
    top1: f64,
    prefill: f64,
    decode: f64,
}

const HEAD: [&str; 8] = ["type", "size", "bits", "perplexity", "KL div.", "same top", "prefill/s", "decode/s"];

impl Row {
    fn cells(&self) -> [String; 8] {
        [
            self.name.clone(),
            bytes(self.n_bytes),
            format!("{:.2}", self.bits_per_weight),
            format!("{:.4}", self.perplexity),
            format!("{:.5}", self.kl),
            format!("{:.2} %", 100.0 * self.top1),
            format!("{:.0}", self.prefill),
            format!("{:.1}", self.decode),
        ]
    }
}

pub(crate) fn run(common: &Common, args: &CompareArgs) -> anyhow::Result<()> {
    let text = text_of(&args.file)?;
    let is_html = match args.plot.as_deref().map(|path| path.extension().and_then(|ext| ext.to_str())) {
        None | Some(Some("svg")) => false,
        Some(Some("html")) => true,
        Some(_) => bail!("a plot is a .svg or a .html file"),
    };
    let original = load(common, &args.model.model)?;
    let options = windows(args.ctx, args.chunks);
    let n_weights: u64 = fewbit::open(original.path())?.weights().tensors().iter().map(|t| t.n_elems()).sum();

    let bar = progress_bar("{msg:>10} {wide_bar} {pos}/{len} windows, {eta} left");
    let row = |name: String, model: &Model| -> anyhow::Result<Row> {
        let n_bytes = model.decoder().weight_bytes();
        let (prefill, decode) = speeds(model, &text, args.ctx)?;
        Ok(Row {
            name,
            n_bytes,
            bits_per_weight: 8.0 * n_bytes as f64 / n_weights.max(1) as f64,
            perplexity: 0.0,
            kl: 0.0,
            top1: 1.0,
            prefill,
            decode,
        })
    };
    bar.set_message("original");
    let measured = original.perplexity(&text, &options, |so_far| {
        bar.set_length(so_far.chunks as u64);
        bar.set_position(so_far.chunks_done as u64);
    })?;
    let base = row("original".to_owned(), &original)?;
    let mut rows = vec![Row { perplexity: measured.ppl(), ..base }];
    for &recipe in &args.types {
        bar.set_message(recipe.name());
        let model = load_quantized(common, original.path(), recipe)?;
        let found = model.divergence_from(&original, &text, &options, |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
        rows.push(Row {
            perplexity: found.perplexity(),
            kl: found.mean_kl(),
            top1: found.top1_agreement(),
            ..row(recipe.name().to_owned(), &model)?
        });
    }
    bar.finish_and_clear();

    let name = original.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(path) = &args.plot {
        let svg = plot(&name, &rows)?;
        let whole = if is_html { html(&name, &rows, &svg) } else { svg };
        fs::write(path, whole).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if common.json {
        let rows = rows.iter().map(|row| {
            json!({
                "type": row.name,
                "bytes": row.n_bytes,
                "bits_per_weight": row.bits_per_weight,
                "ppl": row.perplexity,
                "kl_divergence": row.kl,
                "top1_agreement": row.top1,
                "prefill_tok_s": row.prefill,
                "decode_tok_s": row.decode,
            })
        });
        return print_json(&json!({
            "model": name,
            "ctx": args.ctx,
            "chunks": measured.chunks_done,
            "tokens_scored": measured.nll_per_token.len(),
            "rows": rows.collect::<Vec<_>>(),
        }));
    }
    let mut out = Out::new();
    let line = |cells: [String; 8]| {
        let [name, numbers @ ..] = cells;
        numbers.iter().fold(format!("{name:<10}"), |line, cell| line + &format!("{cell:>11}"))
    };
    out.line(line(HEAD.map(str::to_owned)))?;
    for row in &rows {
        out.line(line(row.cells()))?;
    }
    out.flush()
}

/// Tokens per second of prefill and decode: a window of the text, and some tokens that continue it.
fn speeds(model: &Model, text: &str, ctx: usize) -> anyhow::Result<(f64, f64)> {
    let mut tokens = model.tokenizer().encode(text, SpecialTokens::Plain);
    tokens.truncate(ctx.min(model.context_length().saturating_sub(DECODED)).max(1));
    let out = model.generate(Prompt::Tokens(tokens)).temperature(0.0).max_tokens(DECODED).run()?;
    Ok((out.timings.prefill_tokens_per_second(), out.timings.decode_tokens_per_second()))
}

/// Size against divergence, a point for each quantized model.
fn plot(name: &str, rows: &[Row]) -> anyhow::Result<String> {
    // What was not quantized has no divergence, which a logarithm cannot show.
    let least = rows.iter().map(|row| row.kl).filter(|&kl| kl > 0.0).fold(f64::INFINITY, f64::min).min(1.0);
    let most = rows.iter().map(|row| row.kl).fold(least, f64::max);
    let megabytes = |row: &Row| row.n_bytes as f64 / 1e6;
    let widest = rows.iter().map(megabytes).fold(1e-3, f64::max);
    let points = rows.iter().filter(|row| row.kl > 0.0).map(|row| (megabytes(row), row.kl, row.name.clone()));
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
    let cells = |tag: &str, cells: [String; 8]| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let table: String = rows.iter().map(|row| cells("td", row.cells())).collect();
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>body {{ font-family: sans-serif }} \
         td, th {{ text-align: right; padding: 2px 12px }}</style>\n<h1>{title}</h1>\n<table>\n{}{table}</table>\n{svg}\n",
        cells("th", HEAD.map(str::to_owned)),
        title = escaped(name),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, n_bytes: u64, kl: f64) -> Row {
        Row {
            name: name.into(),
            n_bytes,
            bits_per_weight: 4.5,
            perplexity: 9.0,
            kl,
            top1: 1.0,
            prefill: 1.0,
            decode: 1.0,
        }
    }

    #[test]
    fn a_plot_names_what_was_quantized() {
        let rows = [row("original", 2_000_000, 0.0), row("Q4_K_M", 700_000, 0.02), row("Q8_0", 1_000_000, 0.0005)];
        let svg = plot("<model>", &rows).expect("drawn");
        assert!(svg.starts_with("<svg") && svg.contains("Q4_K_M") && svg.contains("Q8_0"), "{svg}");
        assert!(!svg.contains("<model>") && !svg.contains(">\noriginal"), "names are text");
        let page = html("<model>", &rows, &svg);
        assert!(page.contains("<h1>&lt;model&gt;</h1>") && page.contains("<td>Q8_0</td>") && page.contains("</svg>"));
        // Nothing that was quantized differs: an empty plot.
        assert!(plot("model", &rows[..1]).expect("drawn").contains("</svg>"));
    }
}
