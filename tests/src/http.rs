//! A small blocking HTTP/1.1 client that sends exactly what it is told, also what is not valid,
//! and never sends anything twice.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

/// How long an answer may take, unless said otherwise: longer than any call's own deadline here.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    /// Any method; the target is sent as it stands.
    #[must_use]
    pub fn new(method: &str, target: &str) -> Request {
        Request {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: None,
        }
    }

    /// `GET`
    #[must_use]
    pub fn get(target: &str) -> Request {
        Request::new("GET", target)
    }

    /// `PUT` with a body.
    #[must_use]
    pub fn put(target: &str, body: impl AsRef<[u8]>) -> Request {
        Request::new("PUT", target).body(body)
    }

    /// `DELETE`
    #[must_use]
    pub fn delete(target: &str) -> Request {
        Request::new("DELETE", target)
    }

    /// `POST` of a JSON document.
    #[must_use]
    pub fn post(target: &str, json: &str) -> Request {
        Request::new("POST", target).header("content-type", "application/json").body(json)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Request {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Request {
        self.body = Some(body.as_ref().to_vec());
        self
    }

    /// As it goes over the wire.
    #[must_use]
    pub fn encode(&self, host: SocketAddr) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        let given = |name: &str| self.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        if !given("host") {
            let _ = write!(head, "host: {host}\r\n");
        }
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if let Some(body) = &self.body
            && !given("content-length")
            && !given("transfer-encoding")
        {
            let _ = write!(head, "content-length: {}\r\n", body.len());
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// In order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// A header's value; `None` where it is absent.
    ///
    /// # Panics
    /// Where it stands there twice.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} twice in {self:?}");
        value
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// Where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// The problem's code; empty where the body is none.
    #[must_use]
    pub fn code(&self) -> String {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Fails unless the status is this one.
    ///
    /// # Panics
    /// Where it is another one.
    #[must_use]
    #[track_caller]
    pub fn expect(self, status: u16) -> Response {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// Fails unless it is a problem in due form, with this status and code.
    ///
    /// # Panics
    /// Where it is not.
    #[track_caller]
    pub fn expect_problem(&self, status: u16, code: &str) -> Value {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let json = self.json();
        assert_eq!(json["status"], status, "{json}");
        for field in ["type", "title", "detail"] {
            assert!(json[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {json}");
        }
        json
    }
}

/// A connection that is kept alive.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    timeout: Duration,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    /// Of a node; connects with the first request.
    #[must_use]
    pub fn new(address: SocketAddr) -> Client {
        Client { address, timeout: TIMEOUT, stream: None }
    }

    /// With another bound on how long an answer may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Client {
        self.timeout = timeout;
        self
    }

    /// Sends a request and reads its answer. An error closes the connection; the next request
    /// opens another one.
    ///
    /// # Errors
    /// Those of the socket, and where the answer is no HTTP. Whether the request took effect is
    /// unknown, unless the kind is [`io::ErrorKind::ConnectionRefused`].
    pub fn send(&mut self, request: &Request) -> io::Result<Response> {
        self.write(request)?;
        self.read(request.method == "HEAD")
    }

    /// Sends a request only.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn write(&mut self, request: &Request) -> io::Result<()> {
        let bytes = request.encode(self.address);
        self.write_raw(&bytes)
    }

    /// Sends bytes only.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect_timeout(&self.address, self.timeout)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(self.timeout))?;
                stream.set_write_timeout(Some(self.timeout))?;
                BufReader::new(stream)
            }
        };
        let written = stream.get_mut().write_all(bytes);
        // What refuses a request early may still be read.
        self.stream = Some(stream);
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn read(&mut self, head_only: bool) -> io::Result<Response> {
        let mut stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
        let (response, close) = read_response(&mut stream, head_only)?;
        if !close {
            self.stream = Some(stream);
        }
        Ok(response)
    }
}

/// An answer that goes on and on, line by line.
#[derive(Debug)]
pub struct Follow {
    /// Its head; the body is empty.
    pub head: Response,
    stream: BufReader<TcpStream>,
    lines: VecDeque<String>,
    rest: Vec<u8>,
}

impl Follow {
    /// Sends a request whose answer comes in chunks. Fails where nothing comes for `patience`.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn start(address: SocketAddr, request: &Request, patience: Duration) -> io::Result<Follow> {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(&request.encode(address))?;
        let mut stream = BufReader::new(stream);
        let (status, headers) = read_head(&mut stream)?;
        let head = Response { status, headers, body: Vec::new() };
        Ok(Follow { head, stream, lines: VecDeque::new(), rest: Vec::new() })
    }

    /// The next line; `None` at the answer's proper end.
    ///
    /// # Errors
    /// Where the connection breaks, or nothing comes in time.
    pub fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            let size = line(&mut self.stream)?;
            let size = u64::from_str_radix(&size, 16).map_err(|_| bad("a chunk's size"))?;
            let before = self.rest.len();
            (&mut self.stream).take(size + 2).read_to_end(&mut self.rest)?;
            if self.rest.len() as u64 != before as u64 + size + 2 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.rest.truncate(before + size as usize);
            if size == 0 {
                return Ok(None);
            }
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.drain(..=end).collect::<Vec<u8>>();
                let line = String::from_utf8(line).map_err(|_| bad("a line"))?;
                self.lines.push_back(line.trim_end().to_owned());
            }
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The status and the headers of an answer; names in lower case.
fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<(u16, Vec<(String, String)>)> {
    loop {
        let line = line(stream)?;
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse::<u16>().ok())
            .ok_or_else(|| bad(&format!("status line {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self::line(stream)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad("header line"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        if status != 100 {
            return Ok((status, headers));
        }
    }
}

fn read_response(
    stream: &mut BufReader<TcpStream>,
    head_only: bool,
) -> io::Result<(Response, bool)> {
    let (status, headers) = read_head(stream)?;
    let of = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let close = of("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let mut body = Vec::new();
    if of("transfer-encoding").is_some() {
        return Err(bad("a chunked answer, where the length is known"));
    }
    if !head_only && status != 204 && status != 304 {
        let length = of("content-length").and_then(|text| text.parse::<u64>().ok());
        match length {
            Some(length) => {
                stream.take(length).read_to_end(&mut body)?;
                if body.len() as u64 != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            None if close => {
                stream.read_to_end(&mut body)?;
            }
            None => return Err(bad("an answer without a length")),
        }
    }
    Ok((Response { status, headers, body }, close))
}

fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut bytes = Vec::new();
    stream.read_until(b'\n', &mut bytes)?;
    if bytes.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    String::from_utf8(bytes).map_err(|_| bad("a head that is not UTF-8"))
}

/// Percent-encodes all but what is plain in a path or a query.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
