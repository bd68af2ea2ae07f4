//! A closed loop of PUTs over kept connections, as cheap as it can be: it shares the machine with
//! what it measures.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Builder,
};

use crate::noise::Noise;

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

/// What is written, and how.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Where.
    pub(crate) node: SocketAddr,
    pub(crate) database: &'static str,
    pub(crate) connections: usize,
    /// Bytes of a value; they do not compress.
    pub(crate) value: usize,
    /// Keys of one connection, written in turn.
    pub(crate) keys: usize,
}

/// Whether there is another write to be made.
type More = Arc<dyn Fn() -> bool + Send + Sync>;

impl Load {
    /// Values of 256 bytes.
    pub(crate) fn small(node: SocketAddr, database: &'static str, connections: usize) -> Load {
        Load { node, database, connections, value: 256, keys: 1_000 }
    }

    /// Writes for a while.
    pub(crate) fn last(&self, duration: Duration) -> Outcome {
        let end = Instant::now() + duration;
        self.run(Arc::new(move || Instant::now() < end))
    }

    /// Writes so many times.
    pub(crate) fn times(&self, writes: u64) -> Outcome {
        let made = AtomicU64::new(0);
        self.run(Arc::new(move || made.fetch_add(1, Ordering::Relaxed) < writes))
    }

    /// Writes until told to stop.
    pub(crate) fn until(&self, stop: Arc<AtomicBool>) -> Outcome {
        self.run(Arc::new(move || !stop.load(Ordering::Relaxed)))
    }

    /// A connection that fails is opened again.
    fn run(&self, more: More) -> Outcome {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let began = Instant::now();
            let loops: Vec<_> = (0..self.connections)
                .map(|id| tokio::spawn(write(self.clone(), id, more.clone())))
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
}

async fn write(load: Load, id: usize, more: More) -> (Vec<u32>, u64) {
    let Load { node, database, value, keys, .. } = load;
    let mut latencies = Vec::new();
    let mut errors = 0;
    let head = format!("PUT /v1/databases/{database}/records/c{id:03}-");
    let at = head.len();
    let mut request =
        format!("{head}000000 HTTP/1.1\r\nhost: {node}\r\ncontent-length: {value}\r\n\r\n")
            .into_bytes();
    let body = request.len();
    request.resize(body + value, 0);
    let mut noise = Noise::new(id as u64);
    let mut key = 0;
    while more() {
        let Ok(mut stream) = TcpStream::connect(node).await else {
            errors += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Without it, a request would wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        loop {
            key = (key + 1) % keys;
            request[at..at + 6].copy_from_slice(format!("{key:06}").as_bytes());
            noise.fill(&mut request[body..]);
            let began = Instant::now();
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
            if !more() {
                return (latencies, errors);
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
