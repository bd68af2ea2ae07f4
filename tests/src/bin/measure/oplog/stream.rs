//! A consumer of lines that counts them, as cheaply as it can: it shares the machine with what it
//! measures.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const BUFFER: usize = 128 << 10;
/// What of the end is kept.
const TAIL: usize = 256;

/// An answer while it is read.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: TcpStream,
    buffer: Vec<u8>,
    tail: Vec<u8>,
    /// Lines of JSON so far.
    pub(crate) lines: u64,
    /// All bytes so far, those of HTTP too.
    pub(crate) bytes: u64,
}

impl Stream {
    /// Sends a request; its answer ends with the connection.
    pub(crate) async fn open(node: SocketAddr, target: &str) -> io::Result<Stream> {
        let mut socket = TcpStream::connect(node).await?;
        socket.set_nodelay(true)?;
        let request = format!("GET {target} HTTP/1.1\r\nhost: {node}\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let buffer = vec![0; BUFFER];
        Ok(Stream { socket, buffer, tail: Vec::new(), lines: 0, bytes: 0 })
    }

    /// Reads what there is; false at the end.
    pub(crate) async fn read(&mut self) -> io::Result<bool> {
        let read = self.socket.read(&mut self.buffer).await?;
        let new = &self.buffer[..read];
        if self.bytes == 0 && !new.starts_with(b"HTTP/1.1 200") {
            let text = String::from_utf8_lossy(new).into_owned();
            return Err(io::Error::other(text));
        }
        // The length of a chunk stands in a line of its own, which ends otherwise.
        let line = |before: u8, byte: u8| u64::from(before == b'}' && byte == b'\n');
        if let (Some(before), Some(first)) = (self.tail.last(), new.first()) {
            self.lines += line(*before, *first);
        }
        let pairs = new.iter().zip(new.get(1..).unwrap_or_default());
        self.lines += pairs.map(|(before, byte)| line(*before, *byte)).sum::<u64>();
        self.bytes += read as u64;
        self.tail.extend_from_slice(&new[read.saturating_sub(TAIL)..]);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        Ok(read > 0)
    }

    /// Reads up to so many lines.
    ///
    /// # Errors
    /// Also where they end before.
    pub(crate) async fn read_lines(&mut self, lines: u64) -> io::Result<()> {
        while self.lines < lines {
            if !self.read().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Reads to the end, which must be a proper one.
    pub(crate) async fn read_all(&mut self) -> io::Result<()> {
        while self.read().await? {}
        let tail = String::from_utf8_lossy(&self.tail);
        if tail.contains("{\"end\":true") { Ok(()) } else { Err(io::Error::other(tail)) }
    }
}
