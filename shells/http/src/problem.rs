//! Errors as clients see them: RFC 9457 problems with a stable `code`.

use std::borrow::Cow;

use axum::{
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use highwater_core::{Lsn, NodeId, SlotCause};
use highwater_node::api::Error;
use serde::Serialize;

use crate::{once, slots::cause_text};

/// After how long a refused request may be tried again.
const RETRY_MS: u64 = 100;

/// The stable codes, their status and title. One place, so that none is spelled twice.
macro_rules! codes {
    ($($(#[$meta:meta])* $name:ident, $code:literal, $status:ident, $title:literal;)*) => {
        /// A stable code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Code { $($(#[$meta])* $name),* }
        impl Code {
            /// As it stands in the answer.
            pub(crate) fn text(self) -> &'static str {
                match self { $(Code::$name => $code),* }
            }
            fn status(self) -> StatusCode {
                match self { $(Code::$name => StatusCode::$status),* }
            }
            fn title(self) -> &'static str {
                match self { $(Code::$name => $title),* }
            }
        }
    };
}

codes! {
    BadRequest, "bad_request", BAD_REQUEST, "The request is malformed";
    InvalidKey, "invalid_key", BAD_REQUEST, "The key is not valid";
    InvalidName, "invalid_name", BAD_REQUEST, "The name is not valid";
    Forbidden, "forbidden", FORBIDDEN, "Not allowed from there";
    NotFound, "not_found", NOT_FOUND, "There is no such route";
    NoSuchDatabase, "no_such_database", NOT_FOUND, "There is no such database";
    NoSuchRecord, "no_such_record", NOT_FOUND, "There is no such record";
    NoSuchSlot, "no_such_slot", NOT_FOUND, "There is no such slot";
    NoSuchNode, "no_such_node", NOT_FOUND, "There is no such node";
    MethodNotAllowed, "method_not_allowed", METHOD_NOT_ALLOWED, "The route has no such method";
    NotAcceptable, "not_acceptable", NOT_ACCEPTABLE, "No acceptable media type";
    RequestTimeout, "request_timeout", REQUEST_TIMEOUT, "The request took too long to arrive";
    AlreadyExists, "already_exists", CONFLICT, "It stands with other settings";
    PreconditionFailed, "precondition_failed", PRECONDITION_FAILED, "A precondition does not hold";
    SlotInvalidated, "slot_invalidated", GONE, "The slot is invalidated";
    LogPruned, "log_pruned", GONE, "The log is pruned";
    DatabaseRecreated, "database_recreated", GONE, "The database was made anew";
    LsnOutOfRange, "lsn_out_of_range", UNPROCESSABLE_ENTITY, "The LSN is not there yet";
    IdempotencyMismatch, "idempotency_mismatch", UNPROCESSABLE_ENTITY,
        "The key was used for another request";
    PayloadTooLarge, "payload_too_large", PAYLOAD_TOO_LARGE, "The request is too large";
    UnsupportedMediaType, "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE,
        "The media type is not supported";
    TooManyRequests, "too_many_requests", TOO_MANY_REQUESTS, "Too many requests are under way";
    Internal, "internal", INTERNAL_SERVER_ERROR, "Internal error";
    NoLeader, "no_leader", SERVICE_UNAVAILABLE, "No leader was found in time";
    NotReady, "not_ready", SERVICE_UNAVAILABLE, "This node is not ready";
    StorageFull, "storage_full", SERVICE_UNAVAILABLE, "The leader's disk is full";
    Behind, "behind", SERVICE_UNAVAILABLE, "This node is behind";
    Draining, "draining", SERVICE_UNAVAILABLE, "This node is shutting down";
    OutcomeUnknown, "outcome_unknown", GATEWAY_TIMEOUT, "The outcome is not known";
}

/// An error on its way to a client. Boxed, since it is rare and carries much.
#[derive(Debug)]
pub(crate) struct Problem(Box<Inner>);

#[derive(Debug)]
struct Inner {
    code: Code,
    body: Body,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Body {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: Cow<'static, str>,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lsn: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    op: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasons: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl Problem {
    /// A problem with a text that says what happened here and what to do.
    pub(crate) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Problem {
        let retry = matches!(
            code,
            Code::TooManyRequests
                | Code::NoLeader
                | Code::NotReady
                | Code::StorageFull
                | Code::Behind
                | Code::Draining
        );
        Problem(Box::new(Inner {
            code,
            body: Body {
                kind: format!("urn:highwater:problem:{}", code.text()),
                title: code.title(),
                status: code.status().as_u16(),
                detail: detail.into(),
                code: code.text(),
                lsn: None,
                version: None,
                leader: None,
                cause: None,
                op: None,
                key: None,
                state: None,
                reasons: None,
                retry_after_ms: retry.then_some(RETRY_MS),
            },
            headers: Vec::new(),
        }))
    }

    /// A malformed request.
    pub(crate) fn bad_request(detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem::new(Code::BadRequest, detail)
    }

    /// A precondition did not hold; the record is at `version` (0: there is none).
    pub(crate) fn precondition_failed(version: Lsn) -> Problem {
        let detail = match version {
            Lsn(0) => "the record does not exist; nothing was changed".to_owned(),
            Lsn(n) => format!("the record is at version {n}; nothing was changed"),
        };
        Problem::new(Code::PreconditionFailed, detail).version(version)
    }

    /// There is no record with the key.
    pub(crate) fn no_such_record() -> Problem {
        Problem::new(Code::NoSuchRecord, "there is no record with this key")
    }

    /// The record's version.
    pub(crate) fn version(mut self, version: Lsn) -> Problem {
        self.0.body.version = Some(version.0);
        self
    }

    /// The LSN that it is about.
    pub(crate) fn lsn(mut self, lsn: Lsn) -> Problem {
        self.0.body.lsn = Some(lsn.0);
        self
    }

    /// Who leads, as far as this node knows.
    pub(crate) fn leader(mut self, leader: Option<NodeId>) -> Problem {
        self.0.body.leader = leader.map(|node| node.0);
        self
    }

    /// Why.
    pub(crate) fn cause(mut self, cause: &'static str) -> Problem {
        self.0.body.cause = Some(cause);
        self
    }

    /// Which op of a batch it is about.
    pub(crate) fn op(mut self, index: u32, key: Option<String>) -> Problem {
        self.0.body.op = Some(index);
        self.0.body.key = key;
        self
    }

    /// Why the node is not ready.
    pub(crate) fn readiness(mut self, state: String, reasons: Vec<String>) -> Problem {
        self.0.body.state = Some(state);
        self.0.body.reasons = Some(reasons);
        self
    }

    /// It is the answer to an earlier request with the same key.
    pub(crate) fn replayed(self, replayed: bool) -> Problem {
        if replayed { self.header(once::REPLAYED, HeaderValue::from_static("true")) } else { self }
    }

    /// Sends a header along.
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Problem {
        self.0.headers.push((name, value));
        self
    }

    /// As JSON, for where there is no status any more.
    pub(crate) fn body(&self) -> &Body {
        &self.0.body
    }

    /// The code.
    #[cfg(test)]
    pub(crate) fn code(&self) -> Code {
        self.0.code
    }

    /// What a failed write means. A code that is not known here is not claimed to be definite.
    pub(crate) fn of_write(error: Error) -> Problem {
        match error {
            Error::Refused { version, lsn, replayed, .. } => {
                Problem::precondition_failed(version).lsn(lsn).replayed(replayed)
            }
            error => definite(error).unwrap_or_else(|| {
                Problem::new(
                    Code::OutcomeUnknown,
                    "it was under way when the deadline passed or when the node that held it \
                     failed: it may or may not take effect; with an Idempotency-Key, send the same \
                     request again, else read before you try again",
                )
            }),
        }
    }

    /// What a failed read means.
    pub(crate) fn of_read(error: Error) -> Problem {
        definite(error).unwrap_or_else(|| {
            Problem::new(Code::NotReady, "the read was not answered within the deadline")
        })
    }
}

/// The problem of an error which promises that nothing happened; `None` for any other.
fn definite(error: Error) -> Option<Problem> {
    let text = error.to_string();
    Some(match error {
        Error::NoSuchDatabase => Problem::new(
            Code::NoSuchDatabase,
            "there is no database of this name; create it with PUT /v1/databases/{name}",
        ),
        Error::NoSuchNode => Problem::new(Code::NoSuchNode, "the cluster has no such node"),
        Error::Recreated => Problem::new(
            Code::DatabaseRecreated,
            "the bookmark is of a database of this name that is gone; drop the bookmark",
        ),
        Error::Behind { applied } => Problem::new(
            Code::Behind,
            format!("this node has applied LSN {applied} and did not reach the bookmark in time"),
        )
        .lsn(applied),
        Error::OutOfRange { committed } => Problem::new(
            Code::LsnOutOfRange,
            format!("the last committed LSN is {committed}, and this is beyond it"),
        )
        .lsn(committed),
        Error::NoSuchSlot => Problem::new(
            Code::NoSuchSlot,
            "the database has no slot of this name; create it with PUT …/slots/{name}",
        ),
        Error::SlotDiffers => Problem::new(
            Code::AlreadyExists,
            "the slot stands with other settings; delete it, or use these",
        ),
        Error::SlotInvalidated { cause, first } => Problem::new(
            Code::SlotInvalidated,
            format!(
                "the slot holds nothing back any more; delete it and create it anew: the log goes back \
                 to LSN {first}"
            ),
        )
        .lsn(first)
        .cause(cause_text(cause)),
        Error::LogPruned { first } => Problem::new(
            Code::LogPruned,
            format!(
                "the log goes back to LSN {first}; begin with a snapshot of the database, and go on \
                 behind that"
            ),
        )
        .lsn(first)
        .cause(cause_text(SlotCause::LogRemoved)),
        Error::NoLeader { leader } => {
            Problem::new(Code::NoLeader, "nothing was changed; retrying is safe").leader(leader)
        }
        Error::NotReady(reason) => Problem::new(Code::NotReady, reason),
        Error::Draining => {
            Problem::new(Code::Draining, "nothing was changed; retry on another node")
        }
        Error::StorageFull => Problem::new(
            Code::StorageFull,
            "nothing was changed; free space on the leader's disk or hand leadership over",
        ),
        Error::Busy => Problem::new(Code::TooManyRequests, "nothing was changed; retry later"),
        Error::KeyMismatch => Problem::new(
            Code::IdempotencyMismatch,
            "another request was sent with this Idempotency-Key; nothing was changed; use a new key",
        ),
        Error::KeysFull => Problem::new(
            Code::TooManyRequests,
            "the database remembers as many keys as it may, and forgets none early; nothing was \
             changed; retry later, or without a key",
        ),
        Error::TooLarge => {
            Problem::new(Code::PayloadTooLarge, "the operation is larger than the log takes")
        }
        Error::Internal(_) => Problem::new(Code::Internal, text),
        _ => return None,
    })
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Inner { code, body, headers } = *self.0;
        let retry = body.retry_after_ms;
        let json = serde_json::to_vec(&body).unwrap_or_else(|_| b"{}".to_vec());
        let mut response = (code.status(), json).into_response();
        let map = response.headers_mut();
        map.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        map.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(ms) = retry {
            map.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
        }
        for (name, value) in headers {
            map.insert(name, value);
        }
        response
    }
}
