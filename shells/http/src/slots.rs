//! Slots: durable positions of consumers in a database's history.

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use highwater_core::{Lsn, SlotCause, SlotLimits, SlotSettings, SlotStart, SlotState};
use highwater_node::api::SlotInfo;
use serde::{Deserialize, Serialize};

use crate::{
    App,
    extract::{Call, JSON, Spec, json},
    problem::Problem,
};

const SPEC: Spec = Spec { params: &[], answers: JSON, preconditions: false };
/// More than any body of these calls needs.
const BODY_MAX: usize = 4096;

/// What a slot is created with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    from: Start,
    max_lag_bytes: Option<u64>,
    max_lag_ops: Option<u64>,
    idle_timeout_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "must be \"earliest\", \"latest\" or an LSN")]
enum Start {
    Named(Named),
    After(u64),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Named {
    Earliest,
    Latest,
}

impl Wanted {
    fn settings(&self) -> Result<SlotSettings, Problem> {
        let Wanted { from, max_lag_bytes, max_lag_ops, idle_timeout_ms } = self;
        for (name, limit) in [
            ("max_lag_bytes", max_lag_bytes),
            ("max_lag_ops", max_lag_ops),
            ("idle_timeout_ms", idle_timeout_ms),
        ] {
            if *limit == Some(0) {
                return Err(Problem::bad_request(format!(
                    "`{name}` in the body must be 1 or more"
                )));
            }
        }
        let from = match from {
            Start::Named(Named::Earliest) => SlotStart::Earliest,
            Start::Named(Named::Latest) => SlotStart::Latest,
            Start::After(lsn) => SlotStart::After(Lsn(*lsn)),
        };
        let limits = SlotLimits {
            lag_bytes: *max_lag_bytes,
            lag_ops: *max_lag_ops,
            idle_ms: *idle_timeout_ms,
        };
        Ok(SlotSettings { from, limits })
    }
}

/// A slot, as every call shows it.
#[derive(Serialize)]
struct SlotJson {
    name: String,
    confirmed_lsn: u64,
    lag_ops: u64,
    lag_bytes: u64,
    lag_ms: u64,
    state: &'static str,
    connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_ms: Option<u64>,
}

impl From<SlotInfo> for SlotJson {
    fn from(slot: SlotInfo) -> SlotJson {
        let (state, cause) = match slot.state {
            SlotState::Active => ("active", None),
            SlotState::AtRisk { cause } => ("at_risk", Some(cause)),
            SlotState::Invalidated { cause } => ("invalidated", Some(cause)),
        };
        SlotJson {
            name: slot.name,
            confirmed_lsn: slot.confirmed.0,
            lag_ops: slot.lag_ops,
            lag_bytes: slot.lag_bytes,
            lag_ms: slot.lag_ms,
            state,
            connected: slot.connected,
            cause: cause.map(cause_text),
            expires_in_ms: slot.expires_in_ms,
        }
    }
}

/// A cause, as it stands in answers.
pub(crate) fn cause_text(cause: SlotCause) -> &'static str {
    match cause {
        SlotCause::Horizon => "horizon",
        SlotCause::IdleTimeout => "idle_timeout",
        SlotCause::LogRemoved => "log_removed",
    }
}

#[derive(Serialize)]
struct Confirmed {
    confirmed_lsn: u64,
}

/// `PUT …/slots/{name}`
pub(crate) async fn create(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Created {
        name: String,
        confirmed_lsn: u64,
    }
    let (mut call, body) = Call::new(app, request, SPEC)?;
    let (database, name) = (call.database()?, call.slot()?);
    let settings = call.json::<Wanted>(body, BODY_MAX).await?.settings()?;
    let done = call.node()?.create_slot(&database, &name, settings, call.left()).await;
    let (confirmed, stood) = done.map_err(Problem::of_write)?;
    let mut response = json(&Created { name, confirmed_lsn: confirmed.0 })?;
    if !stood {
        *response.status_mut() = StatusCode::CREATED;
    }
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ack {
    lsn: u64,
}

/// `POST …/slots/{name}/ack`
pub(crate) async fn ack(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut call, body) = Call::new(app, request, SPEC)?;
    let (database, name) = (call.database()?, call.slot()?);
    let Ack { lsn } = call.json(body, BODY_MAX).await?;
    let done = call.node()?.ack_slot(&database, &name, Lsn(lsn), call.left()).await;
    json(&Confirmed { confirmed_lsn: done.map_err(Problem::of_write)?.0 })
}

/// `GET …/slots`
pub(crate) async fn list(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Slots {
        slots: Vec<SlotJson>,
    }
    let (call, _) = Call::new(app, request, SPEC)?;
    let slots = call.node()?.slots(&call.database()?, call.left()).await;
    let slots = slots.map_err(Problem::of_read)?.into_iter().map(SlotJson::from).collect();
    json(&Slots { slots })
}

/// `GET …/slots/{name}`
pub(crate) async fn get(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (call, _) = Call::new(app, request, SPEC)?;
    let slot = call.node()?.slot(&call.database()?, &call.slot()?, call.left()).await;
    json(&SlotJson::from(slot.map_err(Problem::of_read)?))
}

/// `DELETE …/slots/{name}`: answers with what the slot was.
pub(crate) async fn delete(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut call, body) = Call::new(app, request, SPEC)?;
    let (database, name) = (call.database()?, call.slot()?);
    call.nothing(body).await?;
    let node = call.node()?;
    let slot = node.slot(&database, &name, call.left()).await.map_err(Problem::of_read)?;
    node.delete_slot(&database, &name, call.left()).await.map_err(Problem::of_write)?;
    json(&SlotJson::from(slot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::from_json;

    fn settings(body: &str) -> Result<SlotSettings, String> {
        let wanted = from_json::<Wanted>(body.as_bytes());
        wanted.and_then(|wanted| wanted.settings()).map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn settings_are_read_strictly() {
        let from = |body: &str| settings(body).unwrap().from;
        assert_eq!(from(r#"{"from":"earliest"}"#), SlotStart::Earliest);
        assert_eq!(from(r#"{"from":"latest"}"#), SlotStart::Latest);
        assert_eq!(from(r#"{"from":7}"#), SlotStart::After(Lsn(7)));
        let limits =
            settings(r#"{"from":0,"max_lag_bytes":1,"max_lag_ops":2,"idle_timeout_ms":3}"#);
        let limits = limits.unwrap().limits;
        assert_eq!((limits.lag_bytes, limits.lag_ops, limits.idle_ms), (Some(1), Some(2), Some(3)));
        for body in [
            "{}",
            r#"{"from":"first"}"#,
            r#"{"from":-1}"#,
            r#"{"from":1.5}"#,
            r#"{"from":null}"#,
            r#"{"from":"latest","max_lag_ops":0}"#,
            r#"{"from":"latest","max_lag":1}"#,
        ] {
            assert!(settings(body).is_err(), "{body}");
        }
    }
}
