//! `highwater log`: looks at the oplog in a data directory, and changes nothing.

use std::path::{Path, PathBuf};

use highwater_core::{Doubt, Entry, Position, Record};
use highwater_store::{
    disk::RealDisk,
    oplog::{self, Found, Loss, Summary},
};
use highwater_wire::op::{Action, Condition, Op};

use crate::{
    failure::{Context, Failure},
    output::Output,
};

/// The oplog's directory within a data directory.
const OPLOG: &str = "oplog";

/// Reads every block and entry, and prints what is wrong.
///
/// # Errors
/// Where the log is damaged or can't be read.
pub(crate) async fn verify(dir: &Path) -> Result<(), Failure> {
    let mut out = Output::new();
    let summary = inspect(dir, |found| match &found {
        Found::Damage { .. } | Found::Torn { .. } => out.line(describe(&found)),
        Found::Segment(header) if header.lost.is_some() => out.line(describe(&found)),
        _ => {}
    })
    .await?;
    out.line(total(&summary));
    out.finish()?;
    if summary.damages == 0 {
        return Ok(());
    }
    Err(Failure::runtime(format!(
        "the oplog in {} is damaged in {} places: entries there can't be read from this node. \
         Other nodes have what was acknowledged: a running node fetches it from them. Where the \
         newest segment is damaged, the next start cuts it there. Nothing was changed here",
        dir.display(),
        summary.damages
    )))
}

/// Prints everything that stands in the log.
///
/// # Errors
/// Where the log can't be read.
pub(crate) async fn dump(dir: &Path) -> Result<(), Failure> {
    let mut out = Output::new();
    let summary = inspect(dir, |found| out.line(describe(&found))).await?;
    out.line(total(&summary));
    out.finish()
}

async fn inspect(dir: &Path, mut tell: impl FnMut(Found)) -> Result<Summary, Failure> {
    let data = data_dir(dir).ok_or_else(|| {
        Failure::usage(format!(
            "{} holds no oplog: give the data directory of a node",
            dir.display()
        ))
    })?;
    let disk = RealDisk::read_only(data).map_err(|error| Failure::runtime(error.to_string()))?;
    oplog::inspect(&disk, &mut tell)
        .await
        .context(|| format!("can't read the oplog in {}", dir.display()))
}

/// The data directory itself, or that of a node's directory.
fn data_dir(dir: &Path) -> Option<PathBuf> {
    [dir.to_owned(), dir.join("data")].into_iter().find(|data| data.join(OPLOG).is_dir())
}

fn total(summary: &Summary) -> String {
    format!(
        "{} segments, {} history files, {} blocks, {} records, {} bytes; {} damaged; {} bytes of \
         torn tail{}",
        summary.segments,
        summary.histories,
        summary.blocks,
        summary.frames,
        summary.frame_bytes,
        summary.damages,
        summary.torn_bytes,
        describe_doubt(summary.doubt)
    )
}

fn describe_doubt(doubt: Option<Doubt>) -> String {
    let which = match doubt {
        None => return String::new(),
        Some(Doubt { bound: None }) => String::new(),
        Some(Doubt { bound: Some(bound) }) => format!(" up to {bound}"),
    };
    format!("; groups{which} are in doubt until each was found sound")
}

fn describe_bases(based: usize) -> String {
    if based == 0 { String::new() } else { format!("; {based} of the groups begin later") }
}

fn describe_loss(loss: Option<Loss>) -> &'static str {
    match loss {
        None => "",
        Some(Loss::Entries) => "; CUT before it: what followed was lost, but no vote",
        Some(Loss::Votes) => "; CUT before it: what followed was lost, perhaps with votes",
    }
}

fn describe(found: &Found) -> String {
    match found {
        Found::Segment(header) => format!(
            "{}: segment {}, first in use {}, epoch {}, incarnation {}, first block {}, {} groups{}, \
             {} boots{}{}{}",
            header.file,
            header.segment,
            header.oldest,
            header.epoch,
            header.incarnation,
            header.first_block,
            header.groups,
            if header.complete { " (all)" } else { "" },
            header.boots,
            describe_bases(header.based),
            describe_loss(header.lost),
            describe_doubt(header.doubt)
        ),
        Found::Block(block) => format!(
            "  {:#010x} block {} {:?}, epoch {}, synced up to {}, {} records, {} bytes",
            block.offset,
            block.sequence,
            block.kind,
            block.epoch,
            block.synced_upto,
            block.frames,
            block.body_len
        ),
        Found::Frame { offset, len, record } => {
            format!("    {offset:#010x} {len:>6} {}", describe_record(record))
        }
        Found::History(history) => {
            let of = |(group, from, to): &(_, _, _)| format!("group {group} LSN {from} to {to}");
            let groups: Vec<String> = history.groups.iter().map(of).collect();
            format!(
                "{}: history of segment {}, {} blocks, {} bytes: {}",
                history.file,
                history.segment,
                history.blocks,
                history.bytes,
                groups.join(", ")
            )
        }
        Found::Retired { file } => format!("{file}: not in use any more, about to be removed"),
        Found::Spare { file } => format!("{file}: spare"),
        Found::Torn { file, offset, what, bytes } => format!(
            "{file}: torn tail at {offset:#x}: {what}; it was never acknowledged, and the next \
             start cuts {bytes} bytes"
        ),
        Found::Damage { file, offset, what } => format!("{file}: DAMAGE at {offset:#x}: {what}"),
    }
}

fn describe_record(record: &Record) -> String {
    match record {
        Record::Formation(formation) => {
            let members: Vec<String> = formation
                .members
                .iter()
                .map(|member| format!("node {} ({})", member.node, member.incarnation))
                .collect();
            format!("formation: {}", members.join(", "))
        }
        Record::HardState { group, term, vote } => {
            let vote = vote.map_or("nobody".to_owned(), |member| format!("node {}", member.node));
            format!("group {group}: term {term}, voted for {vote}")
        }
        Record::Append { group, entry } => {
            let Entry { lsn, term, kind, .. } = entry;
            format!("group {group}: lsn {lsn}, term {term}, {kind:?}{}", describe_payload(entry))
        }
        Record::Checkpointed { group, lsn } => format!("group {group}: checkpointed up to {lsn}"),
        Record::Base { group, base } => {
            let Position { lsn, term } = base.position;
            format!("group {group}: begins after lsn {lsn}, term {term}")
        }
        Record::Boot { member, boot } => {
            let node = member.node;
            format!("node {node} ({}): met in its start {}", member.incarnation, boot.counter)
        }
        Record::Acked { group, member, term, lsn } => {
            format!("group {group}: node {} acknowledged lsn {lsn} in term {term}", member.node)
        }
        Record::Sound { group, committed } => {
            format!("group {group}: sound again, committed up to {committed}")
        }
    }
}

/// What an entry does; values themselves are not printed.
fn describe_payload(entry: &Entry) -> String {
    let Some(op) = entry.op() else { return String::new() };
    let op = match Op::decode(op) {
        Ok(op) => op,
        Err(error) => return format!(": {} bytes: {error}", entry.payload.len()),
    };
    let writes = op.writes.iter().map(|write| {
        let key = String::from_utf8_lossy(&write.key);
        let guarded = if write.condition == Condition::default() { "" } else { " if" };
        match &write.action {
            Action::Put { value, .. } => format!(" put{guarded} {key:?} {} bytes", value.len()),
            Action::Delete => format!(" delete{guarded} {key:?}"),
        }
    });
    format!(":{}", writes.collect::<Vec<_>>().join(","))
}
