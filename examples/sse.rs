//! An HTTP server that sends answers as server-sent events while they are generated. If a client disconnects, its
//! generation ends. Without an argument, it sends itself one request and exits: `cargo run --release --example sse`.
//! With a port, it keeps serving: `cargo run --release --example sse 3000`,
//! `curl -Nd 'Why is the sky blue?' http://127.0.0.1:3000/`.

use std::io::{BufRead, BufReader, Write};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::routing::post;
use fewbit::{Error, Model};
use futures_util::{Stream, StreamExt};
use tokio::net::TcpListener;

type Refused = (StatusCode, String);

async fn answer(
    State(model): State<Model>,
    question: String,
) -> Result<Sse<impl Stream<Item = Result<Event, axum::Error>>>, Refused> {
    let refuse = |error: Error| (StatusCode::BAD_REQUEST, error.to_string());
    let stream = model.generate(question).templated().max_tokens(500).stream_async().map_err(refuse)?;
    // The stream is dropped with the connection, which ends the generation.
    Ok(Sse::new(stream.map(|piece| Event::default().json_data(piece.map_err(axum::Error::new)?.text))))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::load("smollm2-135m-instruct")?;
    let port: Option<u16> = std::env::args().nth(1).map(|port| port.parse()).transpose()?;
    let listener = TcpListener::bind(("127.0.0.1", port.unwrap_or(0))).await?;
    let address = listener.local_addr()?;
    let app = Router::new().route("/", post(answer)).with_state(model.clone());
    let server = tokio::spawn(async { axum::serve(listener, app).await });
    if port.is_some() {
        return Ok(server.await??);
    }

    // A client that reads ten events and then disconnects.
    tokio::task::spawn_blocking(move || {
        let mut socket = std::net::TcpStream::connect(address)?;
        let question = "Why is the sky blue?";
        write!(socket, "POST / HTTP/1.1\r\nHost: me\r\nContent-Length: {}\r\n\r\n{question}", question.len())?;
        let lines = BufReader::new(socket).lines().map_while(Result::ok).filter(|line| line.starts_with("data:"));
        lines.take(10).for_each(|line| println!("{line}"));
        Ok::<_, std::io::Error>(())
    })
    .await??;
    while model.metrics().ended == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    println!("{:?}", model.metrics().outcomes);
    Ok(())
}
