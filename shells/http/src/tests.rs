//! What the gateway answers without a node: routes, guards, and everything that is judged before
//! one is asked.

use axum::{
    body::Body,
    http::{Request, Response, StatusCode, header::CONTENT_TYPE},
};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::*;

fn options() -> HttpOptions {
    HttpOptions {
        cluster: ClusterId(1),
        hosts: vec!["node-1.example".to_owned()],
        limits: Limits::default(),
    }
}

async fn send(request: Request<Body>) -> Response<Body> {
    router(Slot::default(), options()).oneshot(request).await.unwrap()
}

async fn ask(method: &str, uri: &str, headers: &[(&str, &str)], body: &str) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(uri);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "127.0.0.1:7");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = send(request.body(Body::from(body.to_owned())).unwrap()).await;
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE).cloned();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    if !status.is_success() {
        assert_eq!(kind.unwrap(), "application/problem+json");
        assert_eq!(body["status"], status.as_u16());
        assert!(
            body["type"].is_string() && body["title"].is_string() && body["detail"].is_string()
        );
    }
    (status, body)
}

async fn code(method: &str, uri: &str, headers: &[(&str, &str)], body: &str) -> String {
    let (status, body) = ask(method, uri, headers, body).await;
    format!("{} {}", status.as_u16(), body["code"].as_str().unwrap_or("-"))
}

const RECORD: &str = "/v1/databases/db/records/k";
const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn the_router_speaks_problems() {
    for uri in
        ["/", "/v1", "/v1/databases/", "/v1/tokens", "/v1/databases/db/ingest", "//v1/cluster"]
    {
        assert_eq!(code("GET", uri, &[], "").await, "404 not_found", "{uri}");
    }
    assert_eq!(code("POST", RECORD, &[], "").await, "405 method_not_allowed");
    assert_eq!(code("DELETE", "/v1/databases/db", &[], "").await, "405 method_not_allowed");
    let request = Request::builder().method("PATCH").uri(RECORD).header("host", "localhost");
    let response = send(request.body(Body::empty()).unwrap()).await;
    let mut allowed: Vec<_> =
        response.headers()["allow"].to_str().unwrap().split(',').map(str::trim).collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["DELETE", "GET", "HEAD", "PUT"]);
}

#[tokio::test]
async fn foreign_pages_are_kept_out() {
    for (name, value) in [
        ("host", "evil.example"),
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("origin", "file://localhost"),
    ] {
        for uri in ["/healthz", RECORD, "/nothing"] {
            assert_eq!(code("GET", uri, &[(name, value)], "").await, "403 forbidden", "{value}");
        }
    }
    assert_eq!(code("GET", "http://evil.example/healthz", &[], "").await, "403 forbidden");
    for (name, value) in [
        ("host", "node-1.example:7000"),
        ("host", "[::1]:7000"),
        ("origin", "http://localhost:3000"),
        ("origin", "https://NODE-1.example"),
    ] {
        assert_eq!(code("GET", "/healthz", &[(name, value)], "").await, "200 -", "{value}");
    }
    let request = Request::builder().uri("/healthz").body(Body::empty()).unwrap();
    assert_eq!(send(request).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn until_recovery_only_liveness_answers() {
    assert_eq!(code("GET", "/healthz", &[], "").await, "200 -");
    let (status, body) = ask("GET", "/readyz", &[], "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((&body["code"], &body["state"]), (&"not_ready".into(), &"recovering".into()));
    assert_eq!(body["reasons"].as_array().unwrap().len(), 1);
    assert!(body["retry_after_ms"].is_u64());
    for (method, uri) in [
        ("GET", "/metrics"),
        ("GET", "/v1/cluster"),
        ("GET", "/v1/databases"),
        ("GET", "/v1/databases/db"),
        ("PUT", "/v1/databases/db"),
        ("GET", "/v1/databases/db/records?prefix=a&after=b&limit=1000&values=true"),
        ("GET", "/v1/databases/db/records/k?consistency=local&timeout_ms=60000"),
        ("PUT", "/v1/databases/db/records/k?ack=quorum"),
        ("DELETE", RECORD),
    ] {
        assert_eq!(code(method, uri, &[], "").await, "503 not_ready", "{method} {uri}");
    }
}

#[tokio::test]
async fn what_is_not_known_or_not_built_is_refused() {
    for uri in [
        "/healthz?x=1",
        "/v1/cluster?timeout_ms=0",
        "/v1/cluster?timeout_ms=60001",
        "/v1/databases/db/records/k?follow=true",
        "/v1/databases/db/records/k?consistency=strong",
        "/v1/databases/db/records/k?consistency=local&consistency=local",
        "/v1/databases/db/records?limit=0",
        "/v1/databases/db/records?limit=1001",
        "/v1/databases/db/records?values=1",
        "/v1/databases/db/records?prefix=%ff",
    ] {
        assert_eq!(code("GET", uri, &[], "").await, "400 bad_request", "{uri}");
    }
    for ack in ["all", "2", "local", ""] {
        let uri = format!("{RECORD}?ack={ack}");
        assert_eq!(code("PUT", &uri, &[], "").await, "400 bad_request", "{ack}");
        assert_eq!(code("DELETE", &uri, &[], "").await, "400 bad_request", "{ack}");
    }
    for header in [
        ("highwater-replayed", "true"),
        ("highwater-bookmark", "nonsense"),
        ("if-match", "5-1"),
        ("if-none-match", "*, *"),
    ] {
        for method in ["PUT", "GET", "DELETE"] {
            assert_eq!(code(method, RECORD, &[header], "").await, "400 bad_request", "{header:?}");
        }
    }
    let long = "k".repeat(129);
    for key in ["", long.as_str()] {
        for method in ["PUT", "DELETE"] {
            let header = ("idempotency-key", key);
            assert_eq!(code(method, RECORD, &[header], "").await, "400 bad_request", "{key}");
        }
    }
    let two = [("idempotency-key", "a"), ("idempotency-key", "a")];
    assert_eq!(code("PUT", RECORD, &two, "").await, "400 bad_request");
    for uri in [RECORD, "/v1/databases/db/records", "/v1/databases/db/changes", "/v1/cluster"] {
        let header = ("idempotency-key", "a");
        assert_eq!(code("GET", uri, &[header], "").await, "400 bad_request", "{uri}");
    }
    let batch = "/v1/databases/db/batch";
    for header in [("if-match", "*"), ("if-none-match", "\"5-1\"")] {
        assert_eq!(code("POST", batch, &[JSON, header], "{}").await, "400 bad_request");
    }
    assert_eq!(code("PUT", "/v1/databases/db", &[JSON], "{\"a\":1}").await, "400 bad_request");
    let leader = "/v1/databases/db/leader";
    for body in ["{}", "{\"node\":null}", "{\"node\":-1}", "{\"node\":1,\"x\":1}", "1", ""] {
        assert_eq!(code("POST", leader, &[JSON], body).await, "400 bad_request", "{body}");
    }
}

#[tokio::test]
async fn media_types_are_heeded() {
    let unsupported = "415 unsupported_media_type";
    let encoded = ("content-encoding", "gzip");
    assert_eq!(code("PUT", RECORD, &[encoded], "x").await, unsupported);
    assert_eq!(code("PUT", RECORD, &[("content-encoding", "identity")], "x").await, unsupported);
    for kind in ["text/plain", "application/jsonx", ""] {
        let headers = [("content-type", kind)];
        assert_eq!(code("POST", "/v1/databases/db/batch", &headers, "{}").await, unsupported);
        assert_eq!(code("POST", "/v1/databases/db/leader", &headers, "{}").await, unsupported);
    }
    assert_eq!(code("POST", "/v1/databases/db/leader", &[], "{}").await, unsupported);
    assert_eq!(code("PUT", "/v1/databases/db", &[], "{}").await, unsupported);
    let charset = [("content-type", "Application/JSON; charset=utf-8")];
    let body = "{\"node\":1}";
    assert_eq!(code("POST", "/v1/databases/db/leader", &charset, body).await, "503 not_ready");

    let html = [("accept", "text/html")];
    for (method, uri) in [("GET", "/v1/cluster"), ("PUT", RECORD), ("GET", "/metrics")] {
        let accept = if uri == "/metrics" { [("accept", "application/json")] } else { html };
        assert_eq!(code(method, uri, &accept, "").await, "406 not_acceptable", "{uri}");
    }
    // A value is what it is.
    assert_eq!(code("GET", RECORD, &html, "").await, "503 not_ready");
}

#[tokio::test]
async fn names_keys_and_sizes_are_checked() {
    assert_eq!(code("GET", "/v1/databases/DB", &[], "").await, "400 invalid_name");
    assert_eq!(code("PUT", "/v1/databases/-a", &[], "").await, "400 invalid_name");
    assert_eq!(code("GET", "/v1/databases/a.b/records", &[], "").await, "400 invalid_name");
    for key in ["", "a/../b", "%2e", "%ff", "%zz", &"k".repeat(1025)] {
        let uri = format!("/v1/databases/db/records/{key}");
        assert_eq!(code("GET", &uri, &[], "").await, "400 invalid_key", "{key}");
        assert_eq!(code("PUT", &uri, &[], "").await, "400 invalid_key", "{key}");
    }
    let long = "v".repeat((1 << 20) + 1);
    assert_eq!(code("PUT", RECORD, &[], &long).await, "413 payload_too_large");
    assert_eq!(code("PUT", RECORD, &[], &long[1..]).await, "503 not_ready");
    let kind = "t".repeat(256);
    assert_eq!(code("PUT", RECORD, &[("content-type", &kind)], "").await, "400 bad_request");
    let batch = "/v1/databases/db/batch";
    let long = format!("{{\"ops\":[{}]}}", " ".repeat(16 << 20));
    assert_eq!(code("POST", batch, &[JSON], &long).await, "413 payload_too_large");
}

#[tokio::test]
async fn values_are_fenced_in_for_browsers() {
    let request = Request::builder().uri(RECORD).header("host", "localhost");
    let response = send(request.body(Body::empty()).unwrap()).await;
    let headers = response.headers();
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["content-security-policy"], "sandbox; default-src 'none'");
    assert_eq!(headers["cache-control"], "private, no-cache");
}
