//! A small HTTP client over one connection: for the commands that talk to nodes, and for tests.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, StatusCode,
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
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.address);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request =
            request.body(Full::new(body)).map_err(|error| CallError::NotSent(error.to_string()))?;
        let mut sender = self.sender().await?;
        let answer = async {
            let answer = sender.send_request(request).await?;
            let (head, body) = answer.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Reply { status: head.status, headers: head.headers, body })
        };
        let answer: Result<Reply, hyper::Error> = match time::timeout(self.timeout, answer).await {
            Ok(answer) => answer,
            Err(_) => return Err(CallError::NoAnswer("it took too long".to_owned())),
        };
        match answer {
            Ok(reply) => {
                self.sender = Some(sender);
                Ok(reply)
            }
            Err(error) if error.is_canceled() => Err(CallError::NotSent(error.to_string())),
            Err(error) => Err(CallError::NoAnswer(error.to_string())),
        }
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
