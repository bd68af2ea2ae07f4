//! `highwater slot`: the places that consumers have in a database's changes.

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::Reply,
    failure::Failure,
    nodes::{self, Nodes, Target, escape},
    output::{Output, table},
};

/// What to do.
#[derive(Debug)]
pub(crate) enum Action {
    List,
    Show(String),
    Create(String, Settings),
    Ack(String, u64),
    Delete(String),
}

/// What a slot is created with.
#[derive(Args, Debug)]
pub(crate) struct Settings {
    /// Where it begins: with all that the log still has, with what comes from now on, or after an LSN
    #[arg(long, value_name = "earliest|latest|LSN", value_parser = from)]
    from: Value,
    /// Invalidate it once so many bytes of changes wait for it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_lag_bytes: Option<u64>,
    /// Invalidate it once so many changes wait for it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_lag_ops: Option<u64>,
    /// Invalidate it once it gave no sign of life for so long
    #[arg(long, value_name = "30s|15m|12h|7d", value_parser = millis)]
    idle_timeout: Option<u64>,
}

fn from(text: &str) -> Result<Value, String> {
    match text {
        "earliest" | "latest" => Ok(json!(text)),
        _ => {
            let lsn = text.parse::<u64>();
            lsn.map(|lsn| json!(lsn)).map_err(|_| "must be earliest, latest or an LSN".to_owned())
        }
    }
}

/// A time, in milliseconds.
fn millis(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("must be a number with ms, s, m, h or d behind it: 12h".to_owned()),
    };
    let number = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    number
        .filter(|ms| *ms > 0)
        .ok_or_else(|| "must be 1ms or more, and less than some hundred million years".to_owned())
}

#[derive(Deserialize)]
struct Slots {
    slots: Vec<Slot>,
}

#[derive(Deserialize)]
struct Slot {
    name: String,
    confirmed_lsn: u64,
    lag_ops: u64,
    lag_bytes: u64,
    lag_ms: u64,
    state: String,
    connected: bool,
    cause: Option<String>,
    expires_in_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Confirmed {
    confirmed_lsn: u64,
}

/// Runs a command.
///
/// # Errors
/// Where no node does it.
pub(crate) async fn slot(
    target: &Target,
    database: &str,
    action: Action,
    json: bool,
) -> Result<(), Failure> {
    let nodes = Nodes::of(target)?;
    let all = format!("/v1/databases/{}/slots", escape(database));
    let one = |name: &str| format!("{all}/{}", escape(name));
    let (reply, text) = match action {
        Action::List => {
            let reply = nodes.ask("GET", &all, None).await?;
            let text = match &nodes::read::<Slots>(&reply.body, "slots")?.slots[..] {
                [] => format!("{database} has no slots\n"),
                slots => render(slots),
            };
            (reply, text)
        }
        Action::Show(name) => {
            let reply = nodes.ask("GET", &one(&name), None).await?;
            let text = render(&[nodes::read(&reply.body, "a slot")?]);
            (reply, text)
        }
        Action::Create(name, settings) => {
            let reply = nodes.ask("PUT", &one(&name), Some(settings.encode())).await?;
            let stood = if reply.status == 200 { "stood so already" } else { "is there" };
            let lsn = confirmed(&reply)?;
            (reply, format!("slot {name} of {database} {stood}; it begins after LSN {lsn}\n"))
        }
        Action::Ack(name, lsn) => {
            let body = json!({ "lsn": lsn }).to_string();
            let reply = nodes.ask("POST", &format!("{}/ack", one(&name)), Some(body)).await?;
            let lsn = confirmed(&reply)?;
            (reply, format!("slot {name} of {database} has everything up to LSN {lsn}\n"))
        }
        Action::Delete(name) => {
            let reply = nodes.ask("DELETE", &one(&name), None).await?;
            let lsn = confirmed(&reply)?;
            (
                reply,
                format!("slot {name} of {database} is gone; it had everything up to LSN {lsn}\n"),
            )
        }
    };
    let mut out = Output::new();
    match json {
        true => out.line(reply.text().trim_end()),
        false => out.text(text),
    }
    out.finish()
}

impl Settings {
    /// As the call takes them.
    fn encode(&self) -> String {
        let mut settings = json!({ "from": self.from });
        for (name, limit) in [
            ("max_lag_bytes", self.max_lag_bytes),
            ("max_lag_ops", self.max_lag_ops),
            ("idle_timeout_ms", self.idle_timeout),
        ] {
            if let Some(limit) = limit {
                settings[name] = json!(limit);
            }
        }
        settings.to_string()
    }
}

fn confirmed(reply: &Reply) -> Result<u64, Failure> {
    nodes::read::<Confirmed>(&reply.body, "a slot").map(|slot| slot.confirmed_lsn)
}

fn render(slots: &[Slot]) -> String {
    let heads = ["SLOT", "STATE", "CONFIRMED", "BEHIND", "BYTES", "FOR", "EXPIRES IN", "READ HERE"];
    let mut rows = vec![heads.map(str::to_owned)];
    for slot in slots {
        let state = match &slot.cause {
            Some(cause) => format!("{} ({cause})", slot.state),
            None => slot.state.clone(),
        };
        rows.push([
            slot.name.clone(),
            state,
            slot.confirmed_lsn.to_string(),
            format!("{} ops", slot.lag_ops),
            slot.lag_bytes.to_string(),
            span(slot.lag_ms),
            slot.expires_in_ms.map_or("-".to_owned(), span),
            if slot.connected { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table(&rows)
}

/// A time in the two units that say most.
fn span(ms: u64) -> String {
    let (seconds, minutes, hours) = (ms / 1_000, ms / 60_000, ms / 3_600_000);
    match (hours / 24, hours, minutes, seconds) {
        (0, 0, 0, 0) => format!("{ms} ms"),
        (0, 0, 0, _) => format!("{seconds} s"),
        (0, 0, _, _) => format!("{minutes} m {} s", seconds % 60),
        (0, _, _, _) => format!("{hours} h {} m", minutes % 60),
        (days, _, _, _) => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("15m", 900_000), ("7d", 604_800_000)] {
            assert_eq!(millis(text), Ok(ms));
        }
        for text in
            ["", "5", "s", "0s", "-1s", "1.5h", "1w", "99999999999999999999d", "9999999999999999d"]
        {
            assert!(millis(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_slot_begins_where_it_is_said_to() {
        assert_eq!(from("latest"), Ok(json!("latest")));
        assert_eq!(from("7"), Ok(json!(7)));
        assert!(from("first").is_err() && from("-1").is_err());
    }

    #[test]
    fn the_table_says_how_each_slot_stands() {
        let slots: Slots = serde_json::from_str(
            r#"{"slots":[
                {"name":"a","confirmed_lsn":7,"lag_ops":0,"lag_bytes":0,"lag_ms":0,"state":"active",
                 "connected":true,"expires_in_ms":90061000},
                {"name":"mailer","confirmed_lsn":1,"lag_ops":9,"lag_bytes":100,"lag_ms":61000,
                 "state":"invalidated","connected":false,"cause":"horizon"}]}"#,
        )
        .unwrap();
        let expected = "\
SLOT    STATE                  CONFIRMED  BEHIND  BYTES  FOR      EXPIRES IN  READ HERE
a       active                 7          0 ops   0      0 ms     1 d 1 h     yes
mailer  invalidated (horizon)  1          9 ops   100    1 m 1 s  -           no
";
        assert_eq!(render(&slots.slots), expected);
    }
}
