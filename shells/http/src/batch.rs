//! Batches: many operations on one database, all or nothing.

use std::collections::BTreeSet;

use axum::{
    extract::{Request, State},
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use highwater_core::Lsn;
use highwater_node::api::Error;
use highwater_wire::op::{Action, Condition, Op, Versions, Write};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::{
    App, Limits,
    extract::{Call, JSON, Spec, from_json, json},
    names, once,
    problem::{Code, Problem},
    records,
};

const SPEC: Spec = Spec { params: &["ack"], answers: JSON, preconditions: false };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    ops: Vec<BatchOp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum BatchOp {
    Put(Put),
    Delete(Delete),
}

// A `null` is refused wherever it is not a value: read as "absent", it would turn a conditional
// write into an unconditional one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    key: String,
    #[serde(default, deserialize_with = "given")]
    value_base64: Option<String>,
    #[serde(default, deserialize_with = "given")]
    text: Option<String>,
    #[serde(default, deserialize_with = "given")]
    json: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "given")]
    content_type: Option<String>,
    #[serde(default, deserialize_with = "given")]
    if_version: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delete {
    key: String,
    #[serde(default, deserialize_with = "given")]
    if_version: Option<u64>,
}

fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

#[derive(Serialize)]
struct Written<'a> {
    database: &'a str,
    lsn: u64,
    term: u64,
    durability: &'static str,
}

/// `POST …/batch`
pub(crate) async fn batch(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut call, body) = Call::new(app, request, SPEC)?;
    let database = call.database()?;
    records::check_write(&call)?;
    let key = once::key(&call)?;
    let limit = call.app.options.limits.batch_bytes;
    let text = call.json_text(body, limit).await?;
    let op = op(from_json(&text)?, &call.app.options.limits)?;
    let once = key.map(|key| once::of(&call, key, &[&database], &text));
    let keys: Vec<Bytes> = op.writes.iter().map(|write| write.key.clone()).collect();
    let written = call.node()?.write(&database, op, once, call.left()).await;
    let receipt = written.map_err(|error| match error {
        Error::Refused { index, version, lsn, replayed } => {
            refused(&keys, index, version).lsn(lsn).replayed(replayed)
        }
        error => Problem::of_write(error),
    })?;
    let mut response = json(&Written {
        database: &database,
        lsn: receipt.lsn.0,
        term: receipt.term.0,
        durability: "quorum",
    })?;
    records::mark(&mut response, &call, &receipt);
    Ok(response)
}

fn refused(keys: &[Bytes], index: u32, version: Lsn) -> Problem {
    let key = keys.get(index as usize).map(|key| String::from_utf8_lossy(key).into_owned());
    let named = key.as_deref().unwrap_or("").to_owned();
    let detail = match version {
        Lsn(0) => format!("op {index} (`{named}`): the record does not exist"),
        Lsn(n) => format!("op {index} (`{named}`): the record is at version {n}"),
    };
    Problem::new(Code::PreconditionFailed, format!("{detail}; nothing of the batch was done"))
        .version(version)
        .op(index, key)
}

fn op(batch: Batch, limits: &Limits) -> Result<Op, Problem> {
    let most = limits.batch_ops;
    if batch.ops.is_empty() || batch.ops.len() > most {
        return Err(Problem::bad_request(format!("`ops` must hold 1 to {most} operations")));
    }
    let mut writes = Vec::with_capacity(batch.ops.len());
    let mut keys = BTreeSet::new();
    for (index, op) in batch.ops.into_iter().enumerate() {
        let write = match op {
            BatchOp::Put(put) => put.write(index, limits.value_bytes)?,
            BatchOp::Delete(Delete { key, if_version }) => Write {
                key: names::key_of_json(key).map_err(|problem| problem.op(index as u32, None))?,
                action: Action::Delete,
                condition: condition(if_version),
            },
        };
        if !keys.insert(write.key.clone()) {
            return Err(Problem::bad_request(format!(
                "`ops[{index}]`: a key may stand in a batch once only"
            ))
            .op(index as u32, None));
        }
        writes.push(write);
    }
    Ok(Op { writes })
}

impl Put {
    fn write(self, index: usize, value_bytes: usize) -> Result<Write, Problem> {
        let at = |problem: Problem| problem.op(index as u32, None);
        let key = names::key_of_json(self.key).map_err(at)?;
        let (value, implied) = match (self.value_base64, self.text, self.json) {
            (Some(base64), None, None) => {
                let value = STANDARD.decode(base64).map_err(|error| {
                    at(Problem::bad_request(format!("`ops[{index}].put.value_base64`: {error}")))
                })?;
                (Bytes::from(value), "")
            }
            (None, Some(text), None) => (Bytes::from(text), "text/plain"),
            (None, None, Some(json)) => {
                (Bytes::from(String::from(Box::<str>::from(json))), "application/json")
            }
            _ => {
                return Err(at(Problem::bad_request(format!(
                    "`ops[{index}].put` needs exactly one of value_base64, text and json"
                ))));
            }
        };
        if value.len() > value_bytes {
            return Err(at(Problem::new(
                Code::PayloadTooLarge,
                format!("`ops[{index}]`: the value is larger than {value_bytes} bytes"),
            )));
        }
        let content_type = self.content_type.unwrap_or_else(|| implied.to_owned());
        records::check_content_type(content_type.as_bytes()).map_err(at)?;
        Ok(Write {
            key,
            action: Action::Put { value, content_type: Bytes::from(content_type) },
            condition: condition(self.if_version),
        })
    }
}

fn condition(if_version: Option<u64>) -> Condition {
    match if_version {
        None => Condition::default(),
        Some(0) => Condition { matches: None, matches_none: Some(Versions::Any) },
        Some(version) => {
            Condition { matches: Some(Versions::Of(vec![Lsn(version)])), matches_none: None }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::from_json;

    fn parse(body: &str) -> Result<Op, Code> {
        let limits = Limits { batch_ops: 3, value_bytes: 8, ..Limits::default() };
        from_json(body.as_bytes())
            .and_then(|batch| op(batch, &limits))
            .map_err(|problem| problem.code())
    }

    fn put(fields: &str) -> Result<Write, Code> {
        let body = format!(r#"{{"ops":[{{"put":{{"key":"k",{fields}}}}}]}}"#);
        parse(&body).map(|mut op| op.writes.remove(0))
    }

    fn action(value: &'static str, content_type: &'static str) -> Action {
        Action::Put { value: value.into(), content_type: content_type.into() }
    }

    #[test]
    fn the_three_spellings_of_a_value() {
        assert_eq!(put(r#""text":"hä""#).unwrap().action, action("hä", "text/plain"));
        assert_eq!(put(r#""value_base64":"aGk=""#).unwrap().action, action("hi", ""));
        // JSON is stored as it was spelled.
        assert_eq!(
            put(r#""json":[1.0, 2]"#).unwrap().action,
            action("[1.0, 2]", "application/json")
        );
        assert_eq!(put(r#""json":null"#).unwrap().action, action("null", "application/json"));
        assert_eq!(
            put(r#""text":"a","content_type":"text/csv""#).unwrap().action,
            action("a", "text/csv")
        );
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for fields in [
            r#""text":"a","json":1"#,
            r#""content_type":"text/plain""#,
            r#""text":null"#,
            r#""text":"a","if_version":null"#,
            r#""text":"a","if_version":-1"#,
            r#""text":"a","if_version":1.5"#,
            r#""text":"a","if_version":"1""#,
            r#""text":"a","unknown":1"#,
            r#""text":"a","text":"b""#,
            r#""value_base64":"aGk""#,
            r#""value_base64":"a_-=""#,
            r#""text":"a","content_type":"a\nb""#,
        ] {
            assert_eq!(put(fields).unwrap_err(), Code::BadRequest, "{fields}");
        }
        assert_eq!(put(r#""text":"123456789""#).unwrap_err(), Code::PayloadTooLarge);
        for body in [
            "",
            "{}",
            "[]",
            r#"{"ops":[]}"#,
            r#"{"ops":[{}]}"#,
            r#"{"ops":[{"get":{"key":"k"}}]}"#,
            r#"{"ops":[{"delete":{"key":"k"},"put":{"key":"k"}}]}"#,
            r#"{"ops":[{"delete":{"key":"k"}}],"x":1}"#,
            r#"{"ops":[{"delete":{"key":"k"}}]} x"#,
            r#"{"ops":[{"delete":{"key":"k"}},{"delete":{"key":"k"}}]}"#,
            r#"{"ops":[{"delete":{"key":"a"}},{"delete":{"key":"b"}},{"delete":{"key":"c"}},{"delete":{"key":"d"}}]}"#,
        ] {
            assert_eq!(parse(body).unwrap_err(), Code::BadRequest, "{body}");
        }
        assert_eq!(
            parse(r#"{"ops":[{"delete":{"key":"a/../b"}}]}"#).unwrap_err(),
            Code::InvalidKey
        );
    }

    #[test]
    fn versions_become_conditions() {
        let condition = |version: &str| {
            put(&format!(r#""text":"a","if_version":{version}"#)).unwrap().condition
        };
        assert_eq!(condition("0"), Condition { matches: None, matches_none: Some(Versions::Any) });
        assert_eq!(
            condition("7"),
            Condition { matches: Some(Versions::Of(vec![Lsn(7)])), matches_none: None }
        );
        let op = parse(r#"{"ops":[{"delete":{"key":"k"}}]}"#).unwrap();
        assert_eq!(op.writes[0].condition, Condition::default());
    }
}
