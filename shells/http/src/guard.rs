//! What is judged before any route: who may ask at all, and what no route takes.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, Uri,
        header::{CONTENT_ENCODING, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{
    App, bookmark,
    problem::{Code, Problem},
};

/// Runs before every route.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut response = match admit(&app, request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The answer of an unknown route.
pub(crate) async fn not_found() -> Problem {
    Problem::new(Code::NotFound, "there is no such route")
}

/// The answer of a route to a method that it does not have.
pub(crate) async fn method_not_allowed() -> Problem {
    Problem::new(Code::MethodNotAllowed, "see the Allow header for what this route takes")
}

fn admit(app: &App, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    same_site(&app.options.hosts, uri, headers)?;
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            "Content-Encoding is not taken: send the bytes as they are",
        ));
    }
    // A header that would change the meaning of a request, were it known there, is never ignored.
    // A key may end in `/changes` as well: only the whole path tells.
    let mut rest = uri.path().split('/').skip(4);
    let streams = rest.next() == Some("changes") && rest.next().is_none();
    for name in headers.keys() {
        let name = name.as_str();
        let ours = name.starts_with("highwater-") && name != bookmark::HEADER.as_str();
        if ours || name == "last-event-id" && !streams {
            return Err(Problem::bad_request(format!(
                "header {name} is not supported by this version"
            )));
        }
    }
    Ok(())
}

/// Without tokens, a browser must not be talked into reaching a local cluster: by a name that an
/// attacker's DNS points here, or from a foreign page.
fn same_site(hosts: &[String], uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let mut lines = headers.get_all(HOST).iter();
    let host = match (lines.next(), lines.next()) {
        (Some(host), None) => host,
        _ => return Err(Problem::bad_request("exactly one Host header is needed")),
    };
    let foreign = |what: &str| {
        Err(Problem::new(
            Code::Forbidden,
            format!(
                "{what} must be an IP address, localhost or this node's configured host, since \
                 the cluster runs without tokens"
            ),
        ))
    };
    if !host.to_str().is_ok_and(|text| is_local(hosts, text)) {
        return foreign("Host");
    }
    if uri.authority().is_some_and(|authority| !is_local(hosts, authority.as_str())) {
        return foreign("the request's host");
    }
    for origin in headers.get_all(ORIGIN) {
        let local = origin.to_str().is_ok_and(|text| {
            text.split_once("://").is_some_and(|(scheme, authority)| {
                matches!(scheme, "http" | "https") && is_local(hosts, authority)
            })
        });
        if !local {
            return foreign("Origin");
        }
    }
    Ok(())
}

/// Whether `host[:port]` names this machine in a way that no foreign DNS can.
fn is_local(hosts: &[String], authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => (None, port),
            _ => return false,
        },
        None => match authority.find(':') {
            Some(at) => (Some(&authority[..at]), &authority[at..]),
            None => (Some(authority), ""),
        },
    };
    let port_is_one = match port.strip_prefix(':') {
        Some(digits) => digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    port_is_one
        && host.is_none_or(|host| {
            host.parse::<Ipv4Addr>().is_ok()
                || host.eq_ignore_ascii_case("localhost")
                || hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_names_are_local() {
        let hosts = ["node-1.example".to_owned()];
        for good in [
            "127.0.0.1",
            "127.0.0.1:80",
            "10.1.2.3:7000",
            "[::1]",
            "[::1]:80",
            "localhost",
            "LocalHost:1",
            "node-1.example:7000",
            "NODE-1.EXAMPLE",
        ] {
            assert!(is_local(&hosts, good), "{good}");
        }
        for bad in [
            "",
            ":80",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.1",
            "[::1",
            "[::1]x",
            "[evil]",
            "::1",
            "localhost:",
            "localhost:99999",
            "localhost:80:80",
            "user@localhost",
            "localhost@evil.example",
        ] {
            assert!(!is_local(&hosts, bad), "{bad}");
        }
    }
}
