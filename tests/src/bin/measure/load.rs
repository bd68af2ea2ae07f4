//! A closed loop of PUTs over kept connections, as cheap as it can be: it shares the machine with
//! what it measures.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Builder,
};

const VALUE: usize = 256;
/// Keys of one connection, written in turn.
const KEYS: usize = 1_000;
/// More than any answer here has.
const ANSWER: usize = 4096;

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Of every acknowledged write, sorted, in microseconds.
    pub(crate) latencies_us: Vec<u32>,
    /// Writes that were not acknowledged.
    pub(crate) errors: u64,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
}

impl Outcome {
    /// The latency that so many percent do not exceed.
    pub(crate) fn percentile_ms(&self, percent: f64) -> f64 {
        let last = self.latencies_us.len().saturating_sub(1);
        let at = (last as f64 * percent / 100.0).round() as usize;
        self.latencies_us.get(at).map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
    }
}

/// Writes for a while. A connection that fails is opened again.
pub(crate) fn run(
    node: SocketAddr,
    database: &str,
    connections: usize,
    duration: Duration,
) -> Outcome {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let began = Instant::now();
        let end = began + duration;
        let loops: Vec<_> = (0..connections)
            .map(|id| tokio::spawn(write(node, database.to_owned(), id, end)))
            .collect();
        let mut outcome = Outcome { latencies_us: Vec::new(), errors: 0, took: Duration::ZERO };
        for writer in loops {
            let (latencies, errors) = writer.await.expect("a writer");
            outcome.latencies_us.extend(latencies);
            outcome.errors += errors;
        }
        outcome.took = began.elapsed();
        outcome.latencies_us.sort_unstable();
        outcome
    })
}

async fn write(node: SocketAddr, database: String, id: usize, end: Instant) -> (Vec<u32>, u64) {
    let mut latencies = Vec::new();
    let mut errors = 0;
    let head = format!("PUT /v1/databases/{database}/records/c{id:03}-");
    let at = head.len();
    let mut request =
        format!("{head}000 HTTP/1.1\r\nhost: {node}\r\ncontent-length: {VALUE}\r\n\r\n")
            .into_bytes();
    request.resize(request.len() + VALUE, b'v');
    let mut key = 0;
    while Instant::now() < end {
        let Ok(mut stream) = TcpStream::connect(node).await else {
            errors += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Without it, a request would wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        loop {
            let began = Instant::now();
            if began >= end {
                return (latencies, errors);
            }
            key = (key + 1) % KEYS;
            request[at..at + 3].copy_from_slice(format!("{key:03}").as_bytes());
            match exchange(&mut stream, &request).await {
                Ok(200 | 201) => {
                    let us = began.elapsed().as_micros();
                    latencies.push(u32::try_from(us).unwrap_or(u32::MAX));
                }
                Ok(_) => errors += 1,
                Err(_) => {
                    errors += 1;
                    break;
                }
            }
        }
    }
    (latencies, errors)
}

/// Sends a request and reads its answer; the status.
async fn exchange(stream: &mut TcpStream, request: &[u8]) -> io::Result<u16> {
    stream.write_all(request).await?;
    let mut buffer = [0; ANSWER];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        if let Some((status, length)) = answer(&buffer[..filled])
            && filled >= length
        {
            return Ok(status);
        }
    }
}

/// The status and whole length of an answer, once its head is there.
fn answer(bytes: &[u8]) -> Option<(u16, usize)> {
    const LENGTH: &[u8] = b"\r\ncontent-length: ";
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = &bytes[..end];
    let status = std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()?;
    let at = head.windows(LENGTH.len()).position(|window| window == LENGTH)? + LENGTH.len();
    let digits = head[at..].iter().take_while(|byte| byte.is_ascii_digit());
    let body = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    Some((status, end + body))
}
