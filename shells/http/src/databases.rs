//! Databases: create, look at, hand over.

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use highwater_core::NodeId;
use highwater_node::api::{DatabaseInfo, Error};
use serde::{Deserialize, Serialize};

use crate::{
    App,
    extract::{Call, JSON, Spec, json},
    problem::{Code, Problem},
    view::{self, DatabaseJson},
};

const SPEC: Spec = Spec { params: &[], answers: JSON, preconditions: false };
/// More than any body of these calls needs.
const BODY_MAX: usize = 4096;

#[derive(Serialize)]
struct Created<'a> {
    name: &'a str,
    group: u64,
}

/// `PUT /v1/databases/{db}`
pub(crate) async fn create(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut call, body) = Call::new(app, request, SPEC)?;
    let name = call.database()?;
    call.nothing(body).await?;
    let (group, stood) =
        call.node()?.create_database(&name, call.left()).await.map_err(Problem::of_write)?;
    let mut response = json(&Created { name: &name, group: group.0 })?;
    if !stood {
        *response.status_mut() = StatusCode::CREATED;
    }
    Ok(response)
}

#[derive(Serialize)]
struct Databases {
    databases: Vec<DatabaseJson>,
}

/// `GET /v1/databases`
pub(crate) async fn list(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (call, _) = Call::new(app, request, SPEC)?;
    let node = call.node()?;
    let infos = node.databases(call.left()).await.map_err(Problem::of_read)?;
    let view = call.within(node.cluster()).await?;
    let databases = infos.iter().map(|info| view::database(&view, info)).collect();
    json(&Databases { databases })
}

/// `GET /v1/databases/{db}`
pub(crate) async fn get(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (call, _) = Call::new(app, request, SPEC)?;
    let name = call.database()?;
    let node = call.node()?;
    let group = node.database(&name, call.left()).await.map_err(Problem::of_read)?;
    let view = call.within(node.cluster()).await?;
    json(&view::database(&view, &DatabaseInfo { name, group }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Leader {
    node: u64,
}

#[derive(Serialize)]
struct Led {
    leader: u64,
    term: u64,
}

/// `POST /v1/databases/{db}/leader`
pub(crate) async fn leader(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (mut call, body) = Call::new(app, request, SPEC)?;
    let database = call.database()?;
    let Leader { node } = call.json(body, BODY_MAX).await?;
    let done = call.node()?.transfer(&database, NodeId(node), call.left()).await;
    let (leader, term) = done.map_err(|error| match error {
        Error::NoLeader { leader } => Problem::new(
            Code::NoLeader,
            "the node did not take over in time, and may still do so; retrying is safe",
        )
        .leader(leader),
        error => Problem::of_write(error),
    })?;
    json(&Led { leader: leader.0, term: term.0 })
}
