//! O24. Whatever a node holds is bounded by its configuration, and so is whatever it sends or asks
//! for at a time.
//!
//! docs/INVARIANTS.md, B2; semantics.md 15. Failures 57, 59.

use highwater_core::{Config, Effect, Entry, GroupMessage, Held, Message, NodeId};

use super::{Verdict, broken};

/// Messages of one kind that wait for a write: one for each node and kind, see the core's outbox.
const KINDS: usize = 12;
/// Bytes by which a single entry may go beyond a bound: its header.
const ENTRY: usize = 256;

/// A node with so many groups, and so many nodes beside it, holds this.
pub(crate) fn holds(
    node: NodeId,
    config: &Config,
    (groups, peers): (usize, usize),
    held: &Held,
) -> Verdict {
    let one = config.payload_bytes_max + ENTRY;
    let tail = config.uncommitted_bytes_max + config.tail_bytes_max + config.append_bytes_max + one;
    let run = config.apply_bytes_max + one;
    let bounds = [
        ("entries in memory, in bytes", held.tail_bytes, groups * tail),
        ("bytes not checkpointed", held.dirty_bytes, 2 * config.dirty_bytes_max + groups * run),
        ("reads", held.reads, groups * config.reads_max),
        ("loads", held.loads, groups * (peers + 1)),
        ("unconfirmed groups", held.unconfirmed, groups * peers),
        ("messages withheld", held.withheld, groups * peers * KINDS * (held.writes as usize + 1)),
    ];
    for (what, is, most) in bounds {
        if is > most {
            let what = format!("{node:?} holds {is} {what}; the bound is {most}");
            return Err(broken(what).on(node));
        }
    }
    Ok(())
}

/// A node does this.
pub(crate) fn does(node: NodeId, config: &Config, effect: &Effect) -> Verdict {
    let (what, group) = match effect {
        Effect::Send { message: Message::Group { group, message, .. }, .. } => match message {
            GroupMessage::Append { entries, .. } | GroupMessage::Fetched { entries, .. }
                if beyond(entries, config.append_entries_max, config.append_bytes_max) =>
            {
                ("sends", *group)
            }
            _ => return Ok(()),
        },
        Effect::Send { message: Message::Confirm { groups }, .. }
            if groups.len() > config.confirm_groups_max =>
        {
            let what = format!("{node:?} asks about {} groups at a time", groups.len());
            return Err(broken(what).on(node));
        }
        Effect::Apply { group, entries }
            if beyond(entries, config.apply_entries_max, config.apply_bytes_max) =>
        {
            ("applies", *group)
        }
        _ => return Ok(()),
    };
    Err(broken(format!("{node:?} {what} more of {group:?} at a time than it may"))
        .on(node)
        .of(group))
}

/// More entries than allowed, or more bytes, the last entry not counted: what is read from disk ends
/// with the entry that reaches the bound.
fn beyond(entries: &[Entry], entries_max: usize, bytes_max: usize) -> bool {
    let but_last = &entries[..entries.len().saturating_sub(1)];
    let bytes: usize = but_last.iter().map(|entry| entry.payload.len()).sum();
    entries.len() > entries_max || bytes > bytes_max
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use highwater_core::{GroupId, Hlc, Kind, Lsn, Term};

    use super::*;

    const N: NodeId = NodeId(1);

    #[test]
    fn fires_on_what_is_held_beyond_a_bound() {
        let config = Config { reads_max: 3, ..Config::default() };
        let holds = |held| holds(N, &config, (2, 2), &held);
        assert!(holds(Held { reads: 6, loads: 6, ..Held::default() }).is_ok());
        assert!(holds(Held { reads: 7, ..Held::default() }).is_err());
        assert!(holds(Held { loads: 7, ..Held::default() }).is_err());
        assert!(holds(Held { tail_bytes: usize::MAX, ..Held::default() }).is_err());
        assert!(holds(Held { withheld: 49, writes: 0, ..Held::default() }).is_err());
    }

    #[test]
    fn fires_on_a_run_beyond_a_bound() {
        let entry = |lsn| Entry {
            lsn: Lsn(lsn),
            term: Term(1),
            prev_term: Term(1),
            hlc: Hlc(0),
            origin: 0,
            kind: Kind::Op,
            payload: Bytes::from_static(&[0; 100]),
        };
        let apply = |n| Effect::Apply { group: GroupId(2), entries: (1..=n).map(entry).collect() };
        let few = Config { apply_entries_max: 2, ..Config::default() };
        assert!(does(N, &few, &apply(2)).is_ok());
        assert!(does(N, &few, &apply(3)).is_err());
        let small = Config { apply_bytes_max: 50, ..Config::default() };
        assert!(does(N, &small, &apply(1)).is_ok());
        assert!(does(N, &small, &apply(2)).is_err());
    }
}
