//! `host:port` texts, and free ports.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket},
    ops::RangeInclusive,
};

use crate::failure::Failure;

/// The ports that are given out, before the ephemeral ones are taken away.
const PORTS: RangeInclusive<u16> = 10_000..=60_999;
/// The kernel's default, where it does not say.
const EPHEMERAL: RangeInclusive<u16> = 32_768..=60_999;

/// A host and, where one is given, a port. IPv6 literals stand in brackets when a port follows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// A name or an IP literal, without brackets.
    pub host: String,
    /// The port.
    pub port: Option<u16>,
}

impl Address {
    /// Parses `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 literal.
    pub fn parse(text: &str) -> Result<Address, String> {
        let bad = |why: &str| Err(format!("`{text}` is not HOST[:PORT]: {why}"));
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            match rest.split_once(']') {
                Some((host, "")) => (host, None),
                Some((host, port)) if port.starts_with(':') => (host, Some(&port[1..])),
                _ => return bad("the bracket is not closed"),
            }
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
        if host.is_empty() || !host.bytes().all(plain) {
            return bad("the host is empty or has characters that no host has");
        }
        let port = match port.map(str::parse::<u16>) {
            None => None,
            Some(Ok(port)) if port > 0 => Some(port),
            Some(_) => return bad("the port is a number from 1 to 65535"),
        };
        Ok(Address { host: host.to_owned(), port })
    }

    /// `host:port` for a port.
    #[must_use]
    pub fn with_port(&self, port: u16) -> String {
        if self.host.contains(':') {
            format!("[{}]:{port}", self.host)
        } else {
            format!("{}:{port}", self.host)
        }
    }

    /// Whether the host is a loopback literal or `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }

    /// The first IP address of the host; `None` where it has none known here.
    fn ip(&self) -> Option<IpAddr> {
        let mut found = (self.host.as_str(), 0).to_socket_addrs().ok()?;
        found.next().map(|address| address.ip())
    }
}

/// Resolves `host:port` to the first address that it has.
pub fn resolve(text: &str) -> Result<SocketAddr, String> {
    match text.to_socket_addrs() {
        Ok(mut found) => found.next().ok_or_else(|| format!("`{text}` has no address")),
        Err(error) => Err(format!("can't resolve `{text}`: {error}")),
    }
}

/// Chooses free ports below the ephemeral range, none twice.
pub(crate) struct Ports {
    range: Vec<u16>,
    at: usize,
    taken: BTreeSet<u16>,
}

impl Ports {
    /// Begins at a random port, so that two clusters made at the same time hardly collide.
    pub(crate) fn new(taken: impl IntoIterator<Item = u16>) -> Ports {
        let ephemeral = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
            .ok()
            .and_then(|text| parse_range(&text))
            .unwrap_or(EPHEMERAL);
        let range = candidates(&ephemeral);
        let random = getrandom::u32().unwrap_or(0) as usize;
        Ports { at: random % range.len().max(1), range, taken: taken.into_iter().collect() }
    }

    /// A port for QUIC (UDP) or HTTP (TCP) at a host. What is not this machine's is not probed.
    pub(crate) fn next(&mut self, address: &Address, tcp: bool) -> Result<u16, Failure> {
        let local = address.ip().filter(|ip| is_local(*ip));
        for _ in 0..self.range.len() {
            let port = self.range[self.at];
            self.at = (self.at + 1) % self.range.len();
            let free = match local {
                None => true,
                Some(ip) if tcp => TcpListener::bind((ip, port)).is_ok(),
                Some(ip) => UdpSocket::bind((ip, port)).is_ok(),
            };
            if free && self.taken.insert(port) {
                return Ok(port);
            }
        }
        Err(Failure::runtime(format!(
            "no free port was found for {}; nothing was written. Give ports with --address",
            address.host
        )))
    }
}

fn is_local(ip: IpAddr) -> bool {
    match UdpSocket::bind((ip, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse::<u16>);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

/// The ports below the ephemeral range; where it leaves none, what else there is outside of it.
fn candidates(ephemeral: &RangeInclusive<u16>) -> Vec<u16> {
    let low: Vec<u16> = PORTS.filter(|port| port < ephemeral.start()).collect();
    if low.is_empty() {
        return (1_024..=u16::MAX).filter(|port| !ephemeral.contains(port)).collect();
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed() {
        let parse = |text: &str| Address::parse(text).map(|a| (a.host, a.port));
        assert_eq!(parse("host"), Ok(("host".into(), None)));
        assert_eq!(parse("10.0.0.1:7"), Ok(("10.0.0.1".into(), Some(7))));
        assert_eq!(parse("::1"), Ok(("::1".into(), None)));
        assert_eq!(parse("[::1]"), Ok(("::1".into(), None)));
        assert_eq!(parse("[::1]:65535"), Ok(("::1".into(), Some(65535))));
        for bad in ["", ":1", "host:", "host:0", "host:65536", "a:b:c", "[::1", "[::1]x", "a b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Address::parse("::1").unwrap().with_port(5), "[::1]:5");
        assert!(Address::parse("127.9.9.9:1").unwrap().is_loopback());
        assert!(!Address::parse("0.0.0.0").unwrap().is_loopback());
    }

    #[test]
    fn ports_are_free_distinct_and_not_ephemeral() {
        assert_eq!(parse_range("32768\t60999\n"), Some(32_768..=60_999));
        assert!(candidates(&(32_768..=60_999)).iter().all(|port| (10_000..32_768).contains(port)));
        assert!(candidates(&(1_024..=60_999)).iter().all(|port| *port > 60_999));

        let address = Address::parse("127.0.0.1").unwrap();
        let mut ports = Ports::new([]);
        let first = ports.next(&address, true).unwrap();
        let held = TcpListener::bind(("127.0.0.1", first + 1));
        let second = ports.next(&address, true).unwrap();
        assert!(second != first && (held.is_err() || second != first + 1));
        // A documentation address is nobody's: it can't be probed, and is not.
        assert!(ports.next(&Address::parse("192.0.2.1").unwrap(), false).is_ok());
    }
}
