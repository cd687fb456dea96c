//! Measures what the gateway adds to a request, and what serving costs compared with the bare engine.
//!
//! ```sh
//! cargo run --release -p fewbit-gateway --example overhead              # 200 requests a second, prepared answers
//! cargo run --release -p fewbit-gateway --example overhead -- MODEL     # 64 streams at once, a model's answers
//! ```
//!
//! The first form sends requests at fixed times, whether earlier ones are answered or not, to a server without a gateway
//! and to one with keys, limits, masking, prompts, kept texts and the log. It prints the time of a whole request. The
//! second compares the tokens per second of 64 streams over HTTP with those of 64 streams of the library.

use std::time::{Duration, Instant};

use fewbit_gateway::{Config, Gateway, Key, KeyStore, Live, Settings};
use fewbit_serve::{Backend, Finish, Script, ScriptedBackend, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const PER_SECOND: u32 = 200;
const SECONDS: u32 = 10;
const STREAMS: usize = 64;
const TOKENS: usize = 64;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    match std::env::args().nth(1) {
        None => overhead().await,
        Some(model) => throughput(&model).await,
    }
}

fn request(key: &str, body: &str) -> Vec<u8> {
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\nConnection: close\r\n");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Sends a request and waits for the whole answer.
async fn ask(address: std::net::SocketAddr, request: &[u8]) -> Result<String, AnyError> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    socket.write_all(request).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    if answer.starts_with("HTTP/1.1 200 ") { Ok(answer) } else { Err(answer.into()) }
}

async fn serve(server: Server) -> Result<std::net::SocketAddr, AnyError> {
    let bound = server.bind("127.0.0.1:0").await?;
    let address = bound.local_addr();
    tokio::spawn(bound.run(std::future::pending()));
    Ok(address)
}

/// The times of requests that are sent at a fixed rate, sorted.
async fn times(address: std::net::SocketAddr, request: Vec<u8>) -> Result<Vec<Duration>, AnyError> {
    for _ in 0..50 {
        ask(address, &request).await?;
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    let mut tasks = Vec::new();
    for _ in 0..PER_SECOND * SECONDS {
        ticks.tick().await;
        let request = request.clone();
        tasks.push(tokio::spawn(async move {
            let start = Instant::now();
            ask(address, &request).await.map(|_| start.elapsed())
        }));
    }
    let mut times = Vec::with_capacity(tasks.len());
    for task in tasks {
        times.push(task.await??);
    }
    times.sort_unstable();
    Ok(times)
}

async fn overhead() -> Result<(), AnyError> {
    let n = (PER_SECOND * SECONDS) as usize + 100;
    let script = || (0..10).fold(Script::new().begin(9), |script, _| script.text("a word ")).end(Finish::Stop);
    let scripts = || ScriptedBackend::new((0..n).map(|_| script()));
    let plain = serve(Server::new(scripts())).await?;

    let folder = tempfile::tempdir()?;
    let path = folder.path().join("fewbit.toml");
    std::fs::create_dir_all(folder.path().join("prompts/support"))?;
    let prompt = "[variables.name]\n[[messages]]\nrole = \"system\"\ncontent = \"You help {{ name }}.\"\n";
    std::fs::write(folder.path().join("prompts/support/1.toml"), prompt)?;
    let text =
        "store = \"store\"\nprompts = \"prompts\"\n[masking]\nwhere = [\"local\"]\n[audit]\nkeep_text = \"masked\"\n";
    std::fs::write(&path, text)?;
    let config = Config::read(&path)?;
    let settings = Settings::of(&config)?;
    let store = folder.path().join("store");
    let mut limited = Key::default();
    (limited.requests_per_minute, limited.tokens_per_day) = (Some(1_000_000), Some(1_000_000_000));
    let key = KeyStore::open(&store)?.add("ada", limited)?.secret;
    let local = std::sync::Arc::new(scripts()) as std::sync::Arc<dyn Backend>;
    let live = Live::new(&path, config, Some(local), vec!["scripted".to_owned()])?;
    let gateway = Gateway::open(&store, Default::default(), live.backend())?;
    gateway.apply(settings);
    let guarded = serve(Server::new(gateway.backend()).prompts(gateway.clone()).gate(gateway)).await?;

    let words = "Please look at the order of ada@example.org, which was paid with 4111 1111 1111 1111. ".repeat(10);
    let messages = format!("\"messages\": [{{\"role\": \"user\", \"content\": \"{words}\"}}]");
    let prompt = "\"prompt\": {\"id\": \"support@1\", \"variables\": {\"name\": \"Ada\"}}";
    let without = times(plain, request("", &format!("{{{messages}}}"))).await?;
    let with = times(guarded, request(&key, &format!("{{{messages}, {prompt}}}"))).await?;
    println!("{PER_SECOND} requests a second for {SECONDS} s; milliseconds of a whole request");
    println!("{:16} {:>8} {:>8} {:>8} {:>8}", "", "median", "90 %", "99 %", "most");
    for (name, times) in [("without gateway", &without), ("with gateway", &with)] {
        let at = |part: f64| {
            let i = (times.len() as f64 * part) as usize;
            times.get(i.min(times.len() - 1)).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        println!("{name:16} {:8.3} {:8.3} {:8.3} {:8.3}", at(0.5), at(0.9), at(0.99), at(1.0));
    }
    Ok(())
}

async fn throughput(name: &str) -> Result<(), AnyError> {
    let model = fewbit::Model::load(name)?;
    let prompt = "Tell me a story about a small town by the sea, in which nothing is as it seems.";
    let body = |i: usize| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{i}. {prompt}\"}}], \"stream\": true, \"seed\": {i}, \
             \"max_tokens\": {TOKENS}}}"
        )
    };
    for round in 0..3 {
        let start = Instant::now();
        let threads: Vec<_> = (0..STREAMS)
            .map(|i| {
                let mut options = fewbit::GenerateOptions::new().seed(i as u64);
                options.max_tokens = Some(TOKENS);
                let mut chat = model.chat().options(options).start()?;
                let text = format!("{i}. {prompt}");
                Ok(std::thread::spawn(move || chat.send(text).map(|reply| reply.usage.completion)))
            })
            .collect::<Result<_, fewbit::Error>>()?;
        let mut n_library = 0;
        for thread in threads {
            n_library += thread.join().map_err(|_| "a thread panicked")??;
        }
        let library = n_library as f64 / start.elapsed().as_secs_f64();

        let folder = tempfile::tempdir()?;
        let key = KeyStore::open(folder.path())?.add("ada", Key::default())?.secret;
        let engine = fewbit_serve::EngineBackend::new([("m", model.clone())])?;
        let gateway = Gateway::open(folder.path(), Default::default(), engine)?;
        let address = serve(Server::new(gateway.backend()).gate(gateway)).await?;
        let start = Instant::now();
        let tasks: Vec<_> = (0..STREAMS)
            .map(|i| {
                let request = request(&key, &body(i));
                tokio::spawn(async move { ask(address, &request).await })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        let seconds = start.elapsed().as_secs_f64();
        let rows = fewbit_gateway::usage(folder.path(), fewbit_gateway::By::Key)?;
        let served = rows.iter().map(|row| row.completion_tokens).sum::<u64>() as f64 / seconds;
        println!(
            "round {round}: library {library:.1} tok/s, served {served:.1} tok/s, {:.1} %",
            100.0 * served / library
        );
    }
    Ok(())
}
