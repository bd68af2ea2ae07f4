//! The cluster as this node sees it.

use axum::{
    extract::{Request, State},
    response::Response,
};

use crate::{
    App,
    extract::{Call, JSON, Spec, json},
    problem::Problem,
    view,
};

const SPEC: Spec = Spec { params: &[], answers: JSON, preconditions: false };

/// `GET /v1/cluster`
pub(crate) async fn cluster(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (call, _) = Call::new(app, request, SPEC)?;
    let view = call.within(call.node()?.cluster()).await?;
    json(&view::cluster(&view))
}
