//! The rules that hold for every route: hosts and origins, media types, encodings, routes and
//! methods that are not there, requests that never end.

use std::{io::Read, net::TcpStream, time::Duration};

use highwater_tests::http::{Client, Request};

use crate::{SHARED, database, record};

#[test]
fn no_foreign_page_reaches_the_cluster() {
    let node = database("pages-of-others");
    let port = node.http.port();
    let target = record("pages-of-others", "k");
    let send = |host: &str, origin: Option<&str>| {
        let mut request = Request::put(&target, "v").header("host", host);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        node.send(&request)
    };
    for host in ["127.0.0.1", &format!("127.0.0.1:{port}"), "localhost:1", "[::1]:80", "10.1.2.3"] {
        assert!(matches!(send(host, None).status, 200 | 201), "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.1",
        "user@localhost",
    ] {
        send(host, None).expect_problem(403, "forbidden");
    }
    let local = format!("127.0.0.1:{port}");
    for origin in ["http://127.0.0.1:3000", "https://localhost", "http://[::1]:8"] {
        assert_eq!(send(&local, Some(origin)).status, 200, "{origin}");
    }
    for origin in ["http://evil.example", "null", "", "file://localhost", "http://localhost.evil"] {
        send(&local, Some(origin)).expect_problem(403, "forbidden");
    }
    // On every route, also those that only read, or are not there.
    for target in ["/healthz", "/metrics", "/v1/cluster", "/nowhere"] {
        let get = Request::get(target).header("host", "evil.example");
        node.send(&get).expect_problem(403, "forbidden");
    }
}

#[test]
fn a_host_is_needed_once() {
    let node = SHARED.node(1);
    for head in [
        "GET /healthz HTTP/1.1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n",
    ] {
        let mut client = node.client();
        client.write_raw(head.as_bytes()).unwrap();
        client.read(false).unwrap().expect_problem(400, "bad_request");
    }
    let mut client = node.client();
    client
        .write_raw(b"GET http://evil.example/healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    client.read(false).unwrap().expect_problem(403, "forbidden");
}

#[test]
fn encodings_and_media_types_are_not_guessed() {
    let node = database("media");
    let target = record("media", "k");
    for encoding in ["gzip", "identity", "br, gzip", ""] {
        let put = Request::put(&target, "v").header("content-encoding", encoding);
        node.send(&put).expect_problem(415, "unsupported_media_type");
    }
    node.get(&target).expect_problem(404, "no_such_record");
    let batch = r#"{"ops":[{"delete":{"key":"k"}}]}"#;
    for (target, body) in
        [("/v1/databases/media/batch", batch), ("/v1/databases/media/leader", r#"{"node":1}"#)]
    {
        for media in ["text/plain", "application/jsonx", "application/x-www-form-urlencoded", ""] {
            let post = Request::new("POST", target).body(body).header("content-type", media);
            node.send(&post).expect_problem(415, "unsupported_media_type");
        }
        let post = Request::new("POST", target).body(body);
        node.send(&post).expect_problem(415, "unsupported_media_type");
        let post = post.header("content-type", "Application/JSON; charset=utf-8");
        let _ = node.send(&post).expect(200);
    }
    for content_type in ["é", &"x".repeat(300)] {
        let put = Request::put(&target, "v").header("content-type", content_type);
        node.send(&put).expect_problem(400, "bad_request");
    }
}

#[test]
fn what_is_not_there_is_a_problem_too() {
    let node = database("routes");
    for target in [
        "/",
        "/v1",
        "/v1/",
        "/v2/cluster",
        "/v1/database",
        "/healthz/",
        "/v1/databases/routes/record",
        // What later versions bring.
        "/v1/openapi.json",
        "/v1/tokens",
        "/v1/databases/routes/slots/s/nack",
        "/v1/databases/routes/ingest",
        "/v1/cluster/nodes/1",
    ] {
        node.get(target).expect_problem(404, "not_found");
    }
    for (method, target) in [
        ("POST", "/v1/databases/routes/records/k"),
        ("PATCH", "/v1/databases/routes/records/k"),
        ("OPTIONS", "/v1/databases/routes/records/k"),
        ("POST", "/v1/databases/routes"),
        ("DELETE", "/v1/databases/routes"),
        ("PUT", "/v1/databases/routes/records"),
        ("GET", "/v1/databases/routes/batch"),
        ("POST", "/v1/databases/routes/snapshot"),
        ("PUT", "/v1/databases/routes/leader"),
        ("DELETE", "/v1/databases"),
        ("POST", "/v1/cluster"),
        ("PUT", "/healthz"),
        ("POST", "/readyz"),
        ("POST", "/metrics"),
    ] {
        let answer = node.send(&Request::new(method, target));
        answer.expect_problem(405, "method_not_allowed");
        assert!(answer.header("allow").is_some_and(|allow| !allow.is_empty()), "{method} {target}");
    }
    let _ = node.get("/v1/databases/routes").expect(200);
}

#[test]
fn unknown_parameters_and_headers_are_refused_everywhere() {
    let node = database("unknown");
    let target = record("unknown", "k");
    let _ = node.put(&target, "v").expect(201);
    for query in [
        "x=1",
        "timeout_ms=0",
        "timeout_ms=60001",
        "timeout_ms=-1",
        "timeout_ms=",
        "=",
        "timeout_ms=1&timeout_ms=1",
        "limit=1",
        "%ff=1",
    ] {
        let target = format!("{target}?{query}");
        for request in [Request::put(&target, "w"), Request::get(&target), Request::delete(&target)]
        {
            let answer = node.send(&request);
            assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request"), "{query}");
        }
    }
    for header in ["highwater-durability", "highwater-replayed", "last-event-id"] {
        for target in [target.clone(), format!("{target}/changes")] {
            let put = Request::put(&target, "w").header(header, "1");
            node.send(&put).expect_problem(400, "bad_request");
        }
    }
    assert_eq!(node.get(&format!("{target}?timeout_ms=1000")).expect(200).text(), "v");
}

#[test]
fn what_is_not_http_is_survived() {
    let node = SHARED.node(1);
    let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(20_000));
    for bytes in [
        b"\r\n\r\n\0\xff".as_slice(),
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nhost localhost\r\n\r\n",
        b"PUT /v1/databases/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        b"PUT /v1/databases/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"PUT /v1/databases/a/records/b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let mut client = Client::new(node.http).timeout(Duration::from_secs(10));
        client.write_raw(bytes).unwrap();
        // An error or a closed connection, never a success.
        if let Ok(answer) = client.read(false) {
            assert!((400..500).contains(&answer.status), "{answer:?}");
        }
    }
    let _ = node.get("/healthz").expect(200);
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let node = database("slow");
    let target = record("slow", "k");
    let mut client = node.client();
    let put = Request::new("PUT", &target).header("content-length", "10").body("only");
    client.write(&put).unwrap();
    client.read(false).unwrap().expect_problem(408, "request_timeout");
    node.get(&target).expect_problem(404, "no_such_record");
    // A client that goes away in the middle of its body wrote nothing either.
    let mut client = node.client();
    client.write(&put).unwrap();
    drop(client);
    node.get(&target).expect_problem(404, "no_such_record");
}

#[test]
fn a_connection_is_kept_alive_and_pipelined_requests_are_answered_in_order() {
    let node = database("kept");
    let mut client = node.client();
    let requests: Vec<Request> =
        (0..20).map(|at| Request::put(&record("kept", &at.to_string()), at.to_string())).collect();
    for request in &requests {
        client.write(request).unwrap();
    }
    for at in 0..20 {
        let receipt = client.read(false).unwrap().expect(201).json();
        assert_eq!(receipt["key"], at.to_string());
    }
    let closing = client.send(&Request::get("/healthz").header("connection", "close")).unwrap();
    assert_eq!(closing.status, 200);
    let mut stream = TcpStream::connect(node.http).unwrap();
    std::io::Write::write_all(
        &mut stream,
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    )
    .unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("it closes as it was asked to");
    assert!(all.starts_with(b"HTTP/1.1 200"));
}
