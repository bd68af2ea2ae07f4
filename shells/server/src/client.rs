//! A small HTTP client over one connection: for the commands that talk to nodes, and for tests.

use std::{fmt, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, time};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Errors
    /// Where it is not what was expected.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }

    /// The body as text, for messages.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The request was never sent: it had no effect.
    NotSent(String),
    /// It was sent, and no answer came: whether it had an effect is not known.
    NoAnswer(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::NotSent(why) => write!(f, "not sent: {why}"),
            CallError::NoAnswer(why) => write!(f, "no answer: {why}"),
        }
    }
}

impl std::error::Error for CallError {}

/// One connection to one node; opened when it is needed, and again after a failure. Must be used
/// within a runtime.
#[derive(Debug)]
pub struct Client {
    address: String,
    timeout: Duration,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A client of `host:port` whose calls take at most `timeout`.
    #[must_use]
    pub fn new(address: impl Into<String>, timeout: Duration) -> Client {
        Client { address: address.into(), timeout, sender: None }
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `GET path`.
    ///
    /// # Errors
    /// Where no answer came.
    pub async fn get(&mut self, path: &str) -> Result<Reply, CallError> {
        self.call("GET", path, &[], Bytes::new()).await
    }

    /// `PUT path`.
    ///
    /// # Errors
    /// Where no answer came.
    pub async fn put(&mut self, path: &str, body: impl Into<Bytes>) -> Result<Reply, CallError> {
        self.call("PUT", path, &[], body.into()).await
    }

    /// Any request. `path` must be percent-encoded.
    ///
    /// # Errors
    /// Where no answer came.
    pub async fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Reply, CallError> {
        let request = self.request(method, path, headers, body)?;
        let mut sender = self.sender().await?;
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Reply { status: head.status, headers: head.headers, body })
        };
        let reply = in_time(self.timeout, answer).await?;
        self.sender = Some(sender);
        Ok(reply)
    }

    /// `GET path`, of which the answer is read line by line. Its head, and then each piece of it,
    /// must come within the client's timeout; it may go on for ever.
    ///
    /// # Errors
    /// Where no answer came.
    pub async fn lines(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Lines, CallError> {
        let request = self.request("GET", path, headers, Bytes::new())?;
        let mut sender = self.sender().await?;
        let answer = in_time(self.timeout, sender.send_request(request)).await?;
        Ok(Lines::new(answer, self.timeout))
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, CallError> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.address);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body)).map_err(|error| CallError::NotSent(error.to_string()))
    }

    /// The open connection, or a new one.
    async fn sender(&mut self) -> Result<SendRequest<Full<Bytes>>, CallError> {
        if let Some(mut sender) = self.sender.take()
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        let connect = async {
            let stream = TcpStream::connect(&self.address).await.map_err(|e| e.to_string())?;
            stream.set_nodelay(true).map_err(|e| e.to_string())?;
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())
        };
        let (sender, connection) = match time::timeout(CONNECT, connect).await {
            Ok(connected) => connected.map_err(CallError::NotSent)?,
            Err(_) => return Err(CallError::NotSent("connecting took too long".to_owned())),
        };
        // Its end shows in the sender.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// Waits for an answer, and tells whether the request was sent where there is none.
async fn in_time<T>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, hyper::Error>>,
) -> Result<T, CallError> {
    match time::timeout(timeout, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if error.is_canceled() => Err(CallError::NotSent(error.to_string())),
        Ok(Err(error)) => Err(CallError::NoAnswer(error.to_string())),
        Err(_) => Err(CallError::NoAnswer("it took too long".to_owned())),
    }
}

/// An answer that is read line by line, while it comes.
#[derive(Debug)]
pub struct Lines {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    body: Incoming,
    timeout: Duration,
    /// What came and was not given yet.
    rest: BytesMut,
    /// In so much of that there is no line's end.
    searched: usize,
}

impl Lines {
    fn new(answer: Response<Incoming>, timeout: Duration) -> Lines {
        let (head, body) = answer.into_parts();
        let (status, headers, rest) = (head.status, head.headers, BytesMut::new());
        Lines { status, headers, body, timeout, rest, searched: 0 }
    }

    /// The next line, without its end; `None` where the answer is over.
    ///
    /// # Errors
    /// Where the connection broke, nothing came in time, or the answer ended within a line.
    pub async fn line(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(line) = self.ready() {
                return Ok(Some(line));
            }
            let Some(frame) = time::timeout(self.timeout, self.body.frame())
                .await
                .map_err(|_| CallError::NoAnswer("nothing more came for too long".to_owned()))?
            else {
                break;
            };
            let frame = frame.map_err(|error| CallError::NoAnswer(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
        if self.rest.is_empty() {
            return Ok(None);
        }
        Err(CallError::NoAnswer("it ended within a line".to_owned()))
    }

    /// The next line, where all of it has come already.
    pub fn ready(&mut self) -> Option<Bytes> {
        let found = self.rest[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(at) = found else {
            self.searched = self.rest.len();
            return None;
        };
        let mut line = self.rest.split_to(self.searched + at + 1);
        self.searched = 0;
        line.truncate(line.len() - 1);
        Some(line.freeze())
    }

    /// All of it at once, for what is no stream.
    ///
    /// # Errors
    /// As [`Lines::line`].
    pub async fn into_reply(self) -> Result<Reply, CallError> {
        let Lines { status, headers, body, timeout, .. } = self;
        let body = in_time(timeout, body.collect()).await?.to_bytes();
        Ok(Reply { status, headers, body })
    }
}
