//! Measures what the gateway adds to a request, and what serving costs compared with the bare engine.
//!
//! ```sh
//! cargo run --release -p fewbit-gateway --example overhead              # 200 requests a second, prepared answers
//! cargo run --release -p fewbit-gateway --example overhead -- MODEL     # 64 streams at once, a model's answers
//! cargo run --release -p fewbit-gateway --example overhead -- MODEL 60  # 1,000 connections at once, for 60 s
//! ```
//!
//! The first form sends requests at fixed times, whether earlier ones are answered or not, to a server without a gateway
//! and to one with keys, limits, masking, prompts, kept texts and the log. It prints the time of a whole request. The
//! second compares the tokens per second of 64 streams over HTTP with those of 64 requests of the library. The third opens
//! 1,000 connections at once, again and again, and prints how each ended, and the memory of the process.

use std::collections::BTreeMap;
use std::path::Path;
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
const CONNECTIONS: usize = 1000;
const PROMPT: &str = "Tell me a story about a small town by the sea, in which nothing is as it seems.";

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    match std::env::args().nth(1) {
        None => overhead().await,
        Some(model) => match std::env::args().nth(2) {
            None => throughput(&model).await,
            Some(seconds) => load(&model, Duration::from_secs(seconds.parse()?)).await,
        },
    }
}

const CHAT: &str = "/v1/chat/completions";

fn request(key: &str, path: &str, body: &str) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\nConnection: close\r\n");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Sends a request and reads whatever the answer is.
async fn answer(address: std::net::SocketAddr, request: &[u8]) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    socket.write_all(request).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Sends a request and waits for the whole answer, which must be a good one.
async fn ask(address: std::net::SocketAddr, request: &[u8]) -> Result<String, AnyError> {
    let answer = answer(address, request).await?;
    if answer.starts_with("HTTP/1.1 200 ") { Ok(answer) } else { Err(answer.into()) }
}

/// Sends a request and reads the whole answer, which must be a good one; how long its first event took.
async fn first_event(address: std::net::SocketAddr, request: &[u8]) -> Result<Duration, AnyError> {
    let start = Instant::now();
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    socket.write_all(request).await?;
    let mut answer = Vec::new();
    let mut first = None;
    while socket.read_buf(&mut answer).await? > 0 {
        // Before it there can be comments, which keep the connection alive.
        if first.is_none() && answer.windows(6).any(|bytes| bytes == b"data: ") {
            first = Some(start.elapsed());
        }
    }
    let is_complete = answer.windows(6).any(|bytes| bytes == b"[DONE]");
    first.filter(|_| is_complete).ok_or_else(|| String::from_utf8_lossy(&answer).into_owned().into())
}

/// A streamed chat request; each number has another seed and prompt.
fn story(i: usize) -> String {
    format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{i}. {PROMPT}\"}}], \"stream\": true, \"seed\": {i}, \
         \"max_tokens\": 16}}"
    )
}

/// A server with a gateway in front; the key to ask it with.
async fn serve_guarded(store: &Path, backend: impl Backend) -> Result<(std::net::SocketAddr, String), AnyError> {
    let key = KeyStore::open(store)?.add("ada", Key::default())?.secret;
    let gateway = Gateway::open(store, Default::default(), backend)?;
    Ok((serve(Server::new(gateway.backend()).gate(gateway)).await?, key))
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
    let without = times(plain, request("", CHAT, &format!("{{{messages}}}"))).await?;
    let with = times(guarded, request(&key, CHAT, &format!("{{{messages}, {prompt}}}"))).await?;
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

/// Tokens per second of streams that run together, from the moment when all have a token to the end of the last one, as
/// `fewbit bench --concurrency N` measures them.
fn rate(start: Instant, first_tokens: impl Iterator<Item = Duration>) -> f64 {
    let prefill = first_tokens.max().unwrap_or_default();
    (STREAMS * (TOKENS - 1)) as f64 / start.elapsed().saturating_sub(prefill).as_secs_f64()
}

async fn throughput(name: &str) -> Result<(), AnyError> {
    let model = fewbit::Model::load(name)?;
    let prompt = |i: usize| format!("A short text about the number {i}:");
    // The first round pages the weights in.
    for round in 0..6 {
        let start = Instant::now();
        let threads: Vec<_> = (0..STREAMS)
            .map(|i| {
                let request = model.generate(prompt(i)).temperature(0.0).max_tokens(TOKENS).ignore_eos(true);
                std::thread::spawn(move || request.speculation(fewbit::Speculation::Off).run())
            })
            .collect();
        let mut first = Vec::new();
        for thread in threads {
            let timings = thread.join().map_err(|_| "a thread panicked")??.timings;
            first.push(timings.queue + timings.prefill);
        }
        let library = rate(start, first.into_iter());

        let folder = tempfile::tempdir()?;
        let (address, key) =
            serve_guarded(folder.path(), fewbit_serve::EngineBackend::new([("m", model.clone())])?).await?;
        let start = Instant::now();
        let tasks: Vec<_> = (0..STREAMS)
            .map(|i| {
                let body = format!(
                    "{{\"prompt\": \"{}\", \"temperature\": 0, \"max_tokens\": {TOKENS}, \"ignore_eos\": true, \
                     \"stream\": true}}",
                    prompt(i)
                );
                let request = request(&key, "/v1/completions", &body);
                tokio::spawn(async move { first_event(address, &request).await })
            })
            .collect();
        let mut first = Vec::new();
        for task in tasks {
            first.push(task.await??);
        }
        let served = rate(start, first.into_iter());
        let rows = fewbit_gateway::usage(folder.path(), fewbit_gateway::By::Key)?;
        let n = rows.iter().map(|row| row.completion_tokens).sum::<u64>();
        if n != (STREAMS * TOKENS) as u64 {
            return Err(format!("{n} tokens were metered").into());
        }
        let percent = 100.0 * served / library;
        println!("round {round}: library {library:.1} tok/s, served {served:.1} tok/s, {percent:.1} %");
    }
    Ok(())
}

async fn load(name: &str, time: Duration) -> Result<(), AnyError> {
    let folder = tempfile::tempdir()?;
    let (address, key) = if name == "scripted" {
        let answer = (0..16).fold(Script::new().begin(9), |script, _| script.text("a word ")).end(Finish::Stop);
        serve_guarded(folder.path(), ScriptedBackend::new([]).then_always(answer)).await?
    } else {
        serve_guarded(folder.path(), fewbit_serve::EngineBackend::new([("m", fewbit::Model::load(name)?)])?).await?
    };
    let us = sysinfo::get_current_pid()?;
    let mut system = sysinfo::System::new()?;
    let start = Instant::now();
    let mut round = 0;
    while start.elapsed() < time {
        let began = Instant::now();
        let tasks: Vec<_> = (0..CONNECTIONS)
            .map(|i| {
                let request = request(&key, CHAT, &story(i));
                tokio::spawn(async move { answer(address, &request).await })
            })
            .collect();
        let mut ends = BTreeMap::<String, usize>::new();
        for task in tasks {
            let end = match task.await? {
                Ok(answer) => match answer.split(' ').nth(1) {
                    Some("200") if !answer.contains("[DONE]") => "broken off".to_owned(),
                    Some(status) => status.to_owned(),
                    None => "no answer".to_owned(),
                },
                Err(error) => error.to_string(),
            };
            *ends.entry(end).or_default() += 1;
        }
        system.refresh_processes(sysinfo::ProcessesToUpdate::Some(&[us]), true);
        let memory = system.process(us).map_or(0, sysinfo::Process::memory);
        let ends: Vec<_> = ends.iter().map(|(end, n)| format!("{end}: {n}")).collect();
        let (ends, seconds) = (ends.join(", "), began.elapsed().as_secs_f64());
        println!("round {round}: {ends}; {seconds:.1} s; {} MB in memory", memory / 1_000_000);
        round += 1;
    }
    Ok(())
}
