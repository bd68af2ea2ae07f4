//! Records: put, get, delete, list.

use axum::{
    body::Body,
    extract::{Request, State},
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG},
    },
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use highwater_core::{GroupId, Lsn};
use highwater_node::api::{Bookmark, Consistency, Error, Got, ListQuery, Listed, Page, Receipt};
use highwater_wire::op::{Action, Condition, Op, Versions, Write};
use serde::Serialize;

use crate::{
    App, bookmark,
    conditions::{self, Preconditions, Verdict},
    extract::{Call, JSON, Spec, json},
    once,
    problem::{Code, Problem},
};

/// A media type's length in bytes at most.
const CONTENT_TYPE_MAX: usize = 255;
/// What a record without a media type is served as.
const OCTETS: &str = "application/octet-stream";
const APPLIED: HeaderName = HeaderName::from_static("highwater-applied");
pub(crate) const LSN: HeaderName = HeaderName::from_static("highwater-lsn");

const WRITE: Spec = Spec { params: &["ack"], answers: JSON, preconditions: true };
const READ: Spec = Spec { params: &["consistency"], answers: None, preconditions: true };
const LIST: Spec = Spec {
    params: &["prefix", "after", "limit", "values", "consistency"],
    answers: JSON,
    preconditions: false,
};

/// What a write of one record answers.
#[derive(Serialize)]
struct Written<'a> {
    database: &'a str,
    key: &'a str,
    lsn: u64,
    version: u64,
    term: u64,
    durability: &'static str,
}

/// `PUT …/records/{key}`
pub(crate) async fn put(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut call, body) = Call::new(app, request, WRITE)?;
    let (database, key) = (call.database()?, call.key()?);
    let preconditions = writes(&call)?;
    let once = once::key(&call)?;
    let content_type = content_type(&call)?;
    let limit = call.app.options.limits.value_bytes;
    let value = call.bytes(body, limit).await?;
    let once = once.map(|name| once::of(&call, name, &[&database, &key], &value));
    let condition = condition(&call, &database, &preconditions).await?;
    let action = Action::Put { value, content_type };
    let op = op(&key, action, condition);
    let outcome = call.node()?.write(&database, op, once, call.left()).await;
    let receipt = outcome.map_err(Problem::of_write)?;
    let mut response = written(&call, &database, &key, &receipt)?;
    if !receipt.existed {
        *response.status_mut() = StatusCode::CREATED;
    }
    response.headers_mut().insert(ETAG, conditions::etag(receipt.group, receipt.lsn));
    Ok(response)
}

/// `DELETE …/records/{key}`
pub(crate) async fn delete(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut call, body) = Call::new(app, request, WRITE)?;
    let (database, key) = (call.database()?, call.key()?);
    let preconditions = writes(&call)?;
    let once = once::key(&call)?;
    call.nothing(body).await?;
    let once = once.map(|name| once::of(&call, name, &[&database, &key], b""));
    let mut condition = condition(&call, &database, &preconditions).await?;
    // Preconditions are judged before existence, and a delete needs something to delete. With
    // `If-Match` that is implied; without it, a refusal at version 0 is about existence.
    if !preconditions.has_if_match() {
        condition.matches = Some(Versions::Any);
    }
    let op = op(&key, Action::Delete, condition);
    match call.node()?.write(&database, op, once, call.left()).await {
        Ok(receipt) => written(&call, &database, &key, &receipt),
        Err(Error::Refused { version: Lsn(0), lsn, replayed, .. })
            if !preconditions.has_if_match() =>
        {
            Err(Problem::no_such_record().lsn(lsn).replayed(replayed))
        }
        Err(error) => Err(Problem::of_write(error)),
    }
}

/// `GET` and `HEAD …/records/{key}`
pub(crate) async fn get(State(app): State<App>, request: Request) -> Response {
    let mut response = match read(app, request).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    };
    // A stored value is somebody's upload: a browser must not run it in this origin.
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers
        .insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    response
}

async fn read(app: App, request: Request) -> Result<Response, Problem> {
    let (call, _) = Call::new(app, request, READ)?;
    let (database, key) = (call.database()?, call.key()?);
    let preconditions = call.preconditions()?;
    let (consistency, mark) = consistency(&call)?;
    let node = call.node()?;
    let ask = |consistency| node.get(&database, key.as_bytes(), consistency, call.left());
    let mut got = ask(consistency).await.map_err(Problem::of_read)?;
    if let Some(again) = catch_up(consistency, mark, got.group, got.applied)? {
        got = ask(again).await.map_err(Problem::of_read)?;
    }
    let applied = HeaderValue::from(got.applied.0);
    let version = got.record.as_ref().map_or(Lsn(0), |record| record.version);
    let verdict = preconditions.judge(got.group, version);
    if verdict == Verdict::Fails {
        return Err(Problem::precondition_failed(version).header(APPLIED, applied));
    }
    let mark = position(&call, got.group, &got);
    let Some(record) = got.record else {
        return Err(Problem::no_such_record()
            .header(APPLIED, applied)
            .header(bookmark::HEADER, mark));
    };
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(ETAG, conditions::etag(got.group, version));
    headers.insert(LSN, HeaderValue::from(version.0));
    headers.insert(APPLIED, applied);
    headers.insert(bookmark::HEADER, mark);
    if verdict == Verdict::NotModified {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    headers.insert(CONTENT_TYPE, media_type(&record.content_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(record.value.len()));
    if !call.is_head() {
        *response.body_mut() = Body::from(record.value);
    }
    Ok(response)
}

/// One row of a list.
#[derive(Serialize)]
pub(crate) struct Row {
    key: String,
    version: u64,
    size: u64,
    content_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

#[derive(Serialize)]
struct Rows {
    records: Vec<Row>,
    next: Option<String>,
    applied: u64,
}

/// `GET …/records`
pub(crate) async fn list(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (call, _) = Call::new(app, request, LIST)?;
    let database = call.database()?;
    let limits = &call.app.options.limits;
    let params = call.params();
    let values = params.flag("values")?;
    let limit = params.number("limit", 1, limits.list_max as u64)?;
    let after = params.get("after").filter(|after| !after.is_empty());
    let query = ListQuery {
        prefix: Bytes::copy_from_slice(params.get("prefix").unwrap_or("").as_bytes()),
        after: after.map(|after| Bytes::copy_from_slice(after.as_bytes())),
        limit: limit.map_or(limits.list_default, |limit| limit as usize),
        values,
    };
    let (consistency, mark) = consistency(&call)?;
    let node = call.node()?;
    let ask = |consistency| node.list(&database, query.clone(), consistency, call.left());
    let mut page = ask(consistency).await.map_err(Problem::of_read)?;
    if let Some(again) = catch_up(consistency, mark, page.group, page.applied)? {
        page = ask(again).await.map_err(Problem::of_read)?;
    }
    let Page { group, applied, term, records, more } = page;
    let records =
        records.into_iter().map(|listed| row(listed, values)).collect::<Result<_, _>>()?;
    let mut rows = Rows { records, next: None, applied: applied.0 };
    if more {
        rows.next = rows.records.last().map(|row| row.key.clone());
    }
    let mut response = json(&rows)?;
    let mark = bookmark::encode(call.app.options.cluster, &Bookmark { group, term, lsn: applied });
    let headers = response.headers_mut();
    headers.insert(bookmark::HEADER, mark);
    headers.insert(APPLIED, HeaderValue::from(applied.0));
    Ok(response)
}

pub(crate) fn row(listed: Listed, values: bool) -> Result<Row, Problem> {
    let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec());
    let content_type = match listed.record.content_type.as_ref() {
        b"" => Ok(OCTETS.to_owned()),
        bytes => utf8(bytes),
    };
    // Neither was let in unless it was UTF-8.
    let (Ok(key), Ok(content_type)) = (utf8(&listed.key), content_type) else {
        return Err(Problem::new(Code::Internal, "a stored key or media type is not UTF-8"));
    };
    Ok(Row {
        key,
        version: listed.record.version.0,
        size: listed.size,
        content_type,
        value_base64: values.then(|| STANDARD.encode(&listed.record.value)),
    })
}

/// What a write of one record takes beside the body.
fn writes(call: &Call) -> Result<Preconditions, Problem> {
    check_write(call)?;
    call.preconditions()
}

/// Checks what every write takes.
pub(crate) fn check_write(call: &Call) -> Result<(), Problem> {
    if !matches!(call.params().get("ack"), None | Some("quorum")) {
        return Err(Problem::bad_request("query parameter `ack`: this version has `quorum` only"));
    }
    // A write comes after everything that a bookmark can name, so an intact one asks nothing more.
    call.bookmark()?;
    Ok(())
}

fn op(key: &str, action: Action, condition: Condition) -> Op {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Op { writes: vec![Write { key, action, condition }] }
}

async fn condition(
    call: &Call,
    database: &str,
    preconditions: &Preconditions,
) -> Result<Condition, Problem> {
    if preconditions.is_empty() {
        return Ok(Condition::default());
    }
    let group = if preconditions.name_versions() {
        Some(call.node()?.database(database, call.left()).await.map_err(Problem::of_read)?)
    } else {
        None
    };
    Ok(preconditions.condition(group))
}

fn content_type(call: &Call) -> Result<Bytes, Problem> {
    let mut lines = call.headers().get_all(CONTENT_TYPE).iter();
    let line = match (lines.next(), lines.next()) {
        (None, _) => return Ok(Bytes::new()),
        (Some(line), None) => line.as_bytes(),
        (Some(_), Some(_)) => return Err(Problem::bad_request("more than one Content-Type")),
    };
    check_content_type(line)?;
    Ok(Bytes::copy_from_slice(line))
}

/// Checks a media type that is to be kept: it must be fit to be sent back in a header.
pub(crate) fn check_content_type(text: &[u8]) -> Result<(), Problem> {
    let plain = text.iter().all(|byte| matches!(byte, 0x20..=0x7e));
    if plain && text.len() <= CONTENT_TYPE_MAX {
        return Ok(());
    }
    Err(Problem::bad_request("the content type must be at most 255 bytes of plain ASCII"))
}

fn media_type(stored: &Bytes) -> HeaderValue {
    match HeaderValue::from_maybe_shared(stored.clone()) {
        Ok(value) if !stored.is_empty() => value,
        _ => HeaderValue::from_static(OCTETS),
    }
}

fn written(call: &Call, database: &str, key: &str, receipt: &Receipt) -> Result<Response, Problem> {
    let mut response = json(&Written {
        database,
        key,
        lsn: receipt.lsn.0,
        version: receipt.lsn.0,
        term: receipt.term.0,
        durability: "quorum",
    })?;
    mark(&mut response, call, receipt);
    Ok(response)
}

/// The headers of every write's answer.
pub(crate) fn mark(response: &mut Response, call: &Call, receipt: &Receipt) {
    let Receipt { group, lsn, term, replayed, .. } = *receipt;
    let mark = bookmark::encode(call.app.options.cluster, &Bookmark { group, term, lsn });
    let headers = response.headers_mut();
    headers.insert(bookmark::HEADER, mark);
    if replayed {
        headers.insert(once::REPLAYED, HeaderValue::from_static("true"));
    }
}

/// The bookmark of a read.
fn position(call: &Call, group: GroupId, got: &Got) -> HeaderValue {
    let Got { term, applied, .. } = *got;
    bookmark::encode(call.app.options.cluster, &Bookmark { group, term, lsn: applied })
}

fn consistency(call: &Call) -> Result<(Consistency, Option<Bookmark>), Problem> {
    let mark = call.bookmark()?;
    let consistency = match call.params().get("consistency") {
        None | Some("linearizable") => Consistency::Linearizable,
        Some("local") => Consistency::Local(mark),
        Some(_) => {
            return Err(Problem::bad_request(
                "query parameter `consistency` must be linearizable or local",
            ));
        }
    };
    Ok((consistency, mark))
}

/// A linearizable read sees every write that was acknowledged before it, so it is hardly ever
/// behind a bookmark; where it is, a local read that waits for the bookmark is as new.
fn catch_up(
    asked: Consistency,
    mark: Option<Bookmark>,
    group: GroupId,
    applied: Lsn,
) -> Result<Option<Consistency>, Problem> {
    match (asked, mark) {
        (Consistency::Linearizable, Some(mark)) if mark.group != group => {
            Err(Problem::of_read(Error::Recreated))
        }
        (Consistency::Linearizable, Some(mark)) if mark.lsn > applied => {
            Ok(Some(Consistency::Local(Some(mark))))
        }
        _ => Ok(None),
    }
}
