//! What every handler needs from a request: strict query parameters, the deadline, the media type
//! that is wanted, and the body within its bounds.

use std::{borrow::Cow, future::Future, time::Duration};

use axum::{
    body::Body,
    extract::Request,
    http::{
        HeaderMap, HeaderValue, Method,
        header::{
            ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, EXPECT, IF_MATCH, IF_NONE_MATCH,
        },
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use highwater_node::{Handle, api::Bookmark};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    App, bookmark,
    conditions::Preconditions,
    names, once,
    problem::{Code, Problem},
};

/// How much of a body that is refused for its size is still read, so that the client gets to see
/// the answer, and for how long.
const DRAIN_BYTES: usize = 32 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// What a route answers with and takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// The query parameters it takes beside `timeout_ms`.
    pub(crate) params: &'static [&'static str],
    /// The media type of its answer; `None` where it is the stored one.
    pub(crate) answers: Option<(&'static str, &'static str)>,
    /// Whether it takes `If-Match` and `If-None-Match`.
    pub(crate) preconditions: bool,
}

impl Spec {
    /// Whether it writes records: what may be asked how durably takes a key as well.
    fn writes(&self) -> bool {
        self.params.contains(&"ack")
    }
}

/// The media type of most answers.
pub(crate) const JSON: Option<(&str, &str)> = Some(("application", "json"));
/// The media type of metrics.
pub(crate) const TEXT: Option<(&str, &str)> = Some(("text", "plain"));

/// A request whose head is parsed.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) app: App,
    head: Parts,
    params: Params,
    timeout: Duration,
    started: Instant,
}

impl Call {
    /// Parses the head; the body is read separately. The deadline starts here, and again once the
    /// body has arrived.
    pub(crate) fn new(app: App, request: Request, spec: Spec) -> Result<(Call, Body), Problem> {
        let (head, body) = request.into_parts();
        let params = Params::parse(head.uri.query().unwrap_or(""), spec.params)?;
        let limits = &app.options.limits;
        let most = limits.timeout_max.as_millis() as u64;
        let timeout = match params.number("timeout_ms", 1, most)? {
            Some(ms) => Duration::from_millis(ms),
            None => limits.timeout,
        };
        if !spec.preconditions {
            for name in [IF_MATCH, IF_NONE_MATCH] {
                if head.headers.contains_key(&name) {
                    return Err(Problem::bad_request(format!("this route does not take {name}")));
                }
            }
        }
        if !spec.writes() && head.headers.contains_key(once::HEADER) {
            return Err(Problem::bad_request("this route does not take Idempotency-Key"));
        }
        if let Some(media) = spec.answers {
            accepts(&head.headers, media)?;
        }
        Ok((Call { app, head, params, timeout, started: Instant::now() }, body))
    }

    /// The node, once it has recovered.
    pub(crate) fn node(&self) -> Result<Handle, Problem> {
        self.app.slot.get().ok_or_else(|| {
            Problem::new(Code::NotReady, "this node is recovering its log; retry shortly")
        })
    }

    /// What is left until the deadline.
    pub(crate) fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.started.elapsed())
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Refuses a client that does not take this media type.
    pub(crate) fn must_accept(&self, media: (&str, &str)) -> Result<(), Problem> {
        accepts(&self.head.headers, media)
    }

    pub(crate) fn method(&self) -> &str {
        self.head.method.as_str()
    }

    pub(crate) fn is_head(&self) -> bool {
        self.head.method == Method::HEAD
    }

    pub(crate) fn params(&self) -> &Params {
        &self.params
    }

    /// The database's name, from `/v1/databases/{db}…`.
    pub(crate) fn database(&self) -> Result<String, Problem> {
        let raw = self.head.uri.path().split('/').nth(3).unwrap_or("");
        names::name_of_path(raw)
    }

    /// The slot's name, from `/v1/databases/{db}/slots/{slot}…`.
    pub(crate) fn slot(&self) -> Result<String, Problem> {
        let raw = self.head.uri.path().split('/').nth(5).unwrap_or("");
        names::name_of_path(raw)
    }

    /// The record's key, from `/v1/databases/{db}/records/{key}`.
    pub(crate) fn key(&self) -> Result<String, Problem> {
        let raw = self.head.uri.path().splitn(6, '/').nth(5).unwrap_or("");
        names::key_of_path(raw)
    }

    pub(crate) fn preconditions(&self) -> Result<Preconditions, Problem> {
        Preconditions::of(&self.head.headers)
    }

    /// The bookmark that came along.
    pub(crate) fn bookmark(&self) -> Result<Option<Bookmark>, Problem> {
        let mut lines = self.head.headers.get_all(bookmark::HEADER).iter();
        match (lines.next(), lines.next()) {
            (None, _) => Ok(None),
            (Some(line), None) => {
                bookmark::decode(self.app.options.cluster, line.as_bytes()).map(Some)
            }
            (Some(_), Some(_)) => Err(Problem::bad_request("more than one Highwater-Bookmark")),
        }
    }

    /// Waits for `work`, at most until the deadline: for what has no deadline of its own.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, Problem> {
        timeout(self.left(), work)
            .await
            .map_err(|_| Problem::new(Code::NotReady, "not answered within the deadline"))
    }

    /// Reads the body: at most `limit` bytes.
    pub(crate) async fn bytes(&mut self, body: Body, limit: usize) -> Result<Bytes, Problem> {
        let limits = &self.app.options.limits;
        let bounds = Bounds { limit, idle: limits.body_idle, total: limits.body_timeout };
        // Without the 100 that it waits for, such a client has sent nothing that must be read.
        let waits = self.head.headers.contains_key(EXPECT);
        let read = read(body, bounds, waits).await;
        self.started = Instant::now();
        read
    }

    /// Reads the body as a JSON document.
    pub(crate) async fn json<T: DeserializeOwned>(
        &mut self,
        body: Body,
        limit: usize,
    ) -> Result<T, Problem> {
        from_json(&self.json_text(body, limit).await?)
    }

    /// Reads the body, which is to be a JSON document.
    pub(crate) async fn json_text(&mut self, body: Body, limit: usize) -> Result<Bytes, Problem> {
        is_json(&self.head.headers)?;
        self.bytes(body, limit).await
    }

    /// Reads the body of a call that takes nothing: it is empty, or an empty object.
    pub(crate) async fn nothing(&mut self, body: Body) -> Result<(), Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Nothing {}
        let body = self.bytes(body, 1024).await?;
        if !body.is_empty() {
            is_json(&self.head.headers)?;
            from_json::<Nothing>(&body)?;
        }
        Ok(())
    }
}

/// An answer in JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<Response, Problem> {
    let body = serde_json::to_vec(value)
        .map_err(|error| Problem::new(Code::Internal, format!("could not encode: {error}")))?;
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

pub(crate) fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut parser = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let path = error.path().to_string();
        match path.as_str() {
            "." => Problem::bad_request(format!("the body is malformed: {}", error.inner())),
            path => Problem::bad_request(format!("`{path}` in the body: {}", error.inner())),
        }
    })?;
    parser
        .end()
        .map_err(|error| Problem::bad_request(format!("the body is malformed: {error}")))?;
    Ok(value)
}

fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    let media = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or("")
        .trim();
    if media.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(
        Code::UnsupportedMediaType,
        "this call takes JSON: send Content-Type: application/json",
    ))
}

/// Whether `Accept` admits a media type (RFC 9110, 12.5.1): the most specific range that fits
/// decides, and excludes it with `q=0`. A range that can't be read is passed over.
fn accepts(headers: &HeaderMap, (kind, subtype): (&str, &str)) -> Result<(), Problem> {
    let mut best: Option<(u8, bool)> = None;
    let mut ranges = 0;
    for line in headers.get_all(ACCEPT) {
        for range in String::from_utf8_lossy(line.as_bytes()).split(',') {
            let mut parts = range.split(';').map(str::trim);
            let Some((of, sub)) = parts.next().and_then(|media| media.split_once('/')) else {
                continue;
            };
            ranges += 1;
            let specific = match (of, sub) {
                ("*", "*") => 0,
                (of, "*") if of.eq_ignore_ascii_case(kind) => 1,
                (of, sub) if of.eq_ignore_ascii_case(kind) && sub.eq_ignore_ascii_case(subtype) => {
                    2
                }
                _ => continue,
            };
            let excluded = parts.any(|part| {
                part.split_once('=').is_some_and(|(name, q)| {
                    name.trim().eq_ignore_ascii_case("q")
                        && q.trim().parse::<f32>().is_ok_and(|q| q <= 0.0)
                })
            });
            if best.is_none_or(|(known, _)| specific >= known) {
                best = Some((specific, !excluded));
            }
        }
    }
    match best {
        Some((_, true)) => Ok(()),
        None if ranges == 0 => Ok(()),
        _ => Err(Problem::new(
            Code::NotAcceptable,
            format!("this call answers with {kind}/{subtype}, which Accept does not admit"),
        )),
    }
}

/// Query parameters: each known to the route, none twice.
#[derive(Debug, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    fn parse(query: &str, known: &[&str]) -> Result<Params, Problem> {
        let mut params: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = text(name)?;
            if name != "timeout_ms" && !known.contains(&name.as_str()) {
                return Err(Problem::bad_request(format!(
                    "query parameter `{name}` is not known to this call"
                )));
            }
            if params.iter().any(|(other, _)| *other == name) {
                return Err(Problem::bad_request(format!("query parameter `{name}` comes twice")));
            }
            params.push((name, text(value)?));
        }
        Ok(Params(params))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A number within bounds.
    pub(crate) fn number(
        &self,
        name: &'static str,
        least: u64,
        most: u64,
    ) -> Result<Option<u64>, Problem> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        match value.parse::<u64>() {
            Ok(number) if digits && (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(Problem::bad_request(format!(
                "query parameter `{name}` must be a number from {least} to {most}"
            ))),
        }
    }

    /// `true` or `false`; false where it is absent.
    pub(crate) fn flag(&self, name: &'static str) -> Result<bool, Problem> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => {
                Err(Problem::bad_request(format!("query parameter `{name}` must be true or false")))
            }
        }
    }
}

fn text(raw: &str) -> Result<String, Problem> {
    names::decode(raw, true)
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| Problem::bad_request("the query is not valid percent-encoded UTF-8"))
}

#[derive(Clone, Copy)]
struct Bounds {
    limit: usize,
    idle: Duration,
    total: Duration,
}

async fn read(body: Body, bounds: Bounds, waits: bool) -> Result<Bytes, Problem> {
    let mut body = body;
    let declared = http_body::Body::size_hint(&body).lower();
    if declared > bounds.limit as u64 {
        return Err(refuse(&mut body, bounds.limit, !waits).await);
    }
    let end = Instant::now() + bounds.total;
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    loop {
        let soon = Instant::now() + bounds.idle;
        let frame = match timeout_at(soon.min(end), body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => {
                return Err(closing(Problem::bad_request("the body broke off or is malformed")));
            }
            Err(_) => {
                return Err(closing(Problem::new(
                    Code::RequestTimeout,
                    "the body did not arrive in time; nothing was changed",
                )));
            }
        };
        // Trailers carry nothing that any call takes.
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > bounds.limit {
            return Err(refuse(&mut body, bounds.limit, true).await);
        }
        // Most bodies come in one piece, which is not copied.
        if all.is_empty() && first.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve((declared as usize).max(first.len() + data.len()));
            all.extend_from_slice(&first);
            first = Bytes::new();
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// A body that is too large: reads on for a while, since a client that is still sending would lose
/// the answer to a reset of its connection.
async fn refuse(body: &mut Body, limit: usize, drain: bool) -> Problem {
    if drain {
        let mut left = DRAIN_BYTES;
        let _ = timeout(DRAIN_TIME, async {
            while let Some(Ok(frame)) = body.frame().await {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                if left == 0 {
                    break;
                }
            }
        })
        .await;
    }
    let detail: Cow<'static, str> =
        format!("the body is larger than the limit of {limit} bytes; nothing was changed").into();
    closing(Problem::new(Code::PayloadTooLarge, detail))
}

/// What is left of the body can't be told from a next request.
fn closing(problem: Problem) -> Problem {
    problem.header(CONNECTION, HeaderValue::from_static("close"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(value).unwrap());
        accepts(&headers, ("application", "json")).is_ok()
    }

    #[test]
    fn accept_is_heeded() {
        assert!(accepts(&HeaderMap::new(), ("application", "json")).is_ok());
        for good in [
            "*/*",
            "application/json",
            "Application/*",
            "text/html, */*;q=0.1",
            "application/json;q=0.5, text/html",
            "*/*;q=0, application/json",
            "",
        ] {
            assert!(accept(good), "{good}");
        }
        for bad in [
            "text/html",
            "application/xml",
            "application/json;q=0, */*",
            "*/*;q=0",
            "application/json;q=0.0",
        ] {
            assert!(!accept(bad), "{bad}");
        }
    }

    #[test]
    fn params_are_strict() {
        let parse = |query: &str| Params::parse(query, &["prefix", "values"]);
        let params = parse("prefix=a%2Fb+c%2B&values=true&&timeout_ms=5").unwrap();
        assert_eq!(params.get("prefix"), Some("a/b c+"));
        assert!(params.flag("values").unwrap());
        assert_eq!(params.number("timeout_ms", 1, 9).unwrap(), Some(5));
        assert!(parse("").unwrap().get("prefix").is_none());
        for bad in ["x=1", "prefix=a&prefix=a", "prefix=%zz", "prefix=%ff", "Prefix=a", "=1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for bad in ["0", "10", "-1", "+1", "1.0", "", " 1", "99999999999999999999"] {
            let params = parse(&format!("timeout_ms={}", bad.replace('+', "%2B"))).unwrap();
            assert!(params.number("timeout_ms", 1, 9).is_err(), "{bad}");
        }
        for bad in ["1", "", "True"] {
            assert!(parse(&format!("values={bad}")).unwrap().flag("values").is_err(), "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_are_bounded_in_size_and_time() {
        let bounds =
            Bounds { limit: 8, idle: Duration::from_secs(1), total: Duration::from_secs(3) };
        assert_eq!(read(Body::from("12345678"), bounds, false).await.unwrap(), "12345678");
        assert!(read(Body::empty(), bounds, false).await.unwrap().is_empty());
        let code = |read: Result<Bytes, Problem>| read.unwrap_err().code();
        assert_eq!(code(read(Body::from("123456789"), bounds, true).await), Code::PayloadTooLarge);

        // Chunks of unknown total length, each after a pause.
        let stream = |chunks: usize, pause: Duration| {
            Body::new(http_body_util::StreamBody::new(futures_stream(chunks, pause)))
        };
        let quick = Duration::from_millis(10);
        assert_eq!(read(stream(4, quick), bounds, false).await.unwrap(), "abababab");
        assert_eq!(code(read(stream(5, quick), bounds, false).await), Code::PayloadTooLarge);
        let silent = Duration::from_millis(1100);
        assert_eq!(code(read(stream(2, silent), bounds, false).await), Code::RequestTimeout);
        let trickle = Duration::from_millis(900);
        assert_eq!(code(read(stream(4, trickle), bounds, false).await), Code::RequestTimeout);
    }

    /// `chunks` times "ab", each after `pause`.
    fn futures_stream(
        chunks: usize,
        pause: Duration,
    ) -> impl futures_core::Stream<Item = Result<http_body::Frame<Bytes>, std::io::Error>> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            for _ in 0..chunks {
                tokio::time::sleep(pause).await;
                let frame = http_body::Frame::data(Bytes::from_static(b"ab"));
                if sender.send(Ok(frame)).await.is_err() {
                    break;
                }
            }
        });
        tokio_stream::wrappers::ReceiverStream::new(receiver)
    }
}
