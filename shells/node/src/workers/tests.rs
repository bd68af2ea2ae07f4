//! Workers that fail.

use std::io;

use highwater_core::{Kind, Position, Term};
use highwater_store::state::{StateFiles, StateOptions, StorageBackend};

use super::*;

/// Has no files, and panics at group 7's.
pub(crate) struct Poisoned;

impl StateFiles for Poisoned {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn StorageBackend>>> {
        assert!(!name.contains('7'), "poison");
        Ok(None)
    }

    fn create_temp(&self, _: &str) -> io::Result<Box<dyn StorageBackend>> {
        panic!("poison")
    }

    fn publish(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn settle(&self) -> io::Result<()> {
        Ok(())
    }
}

fn worker() -> (UnboundedSender<StateJob>, UnboundedReceiver<Input>) {
    let (done, completions) = unbounded_channel();
    let states = Arc::new(States::new(Box::new(Poisoned), StateOptions::default()).unwrap());
    let worker = StateWorker { states, done, shared: Arc::new(Shared::new()) };
    (worker.start(), completions)
}

fn apply(group: u64) -> StateJob {
    let entry = Entry {
        lsn: Lsn(1),
        term: Term(1),
        prev_term: Term(0),
        hlc: highwater_core::Hlc::default(),
        origin: 0,
        kind: Kind::TermStart,
        payload: Bytes::new(),
    };
    StateJob::Apply { group: GroupId(group), entries: vec![entry] }
}

#[tokio::test]
async fn a_panic_fails_one_group_and_the_worker_goes_on() {
    let (jobs, mut completions) = worker();
    let checkpoint = |group| {
        let at = Position { term: Term(1), lsn: Lsn(1) };
        let checkpoint = Checkpoint { at, pruned: Lsn(0), control: Vec::new() };
        StateJob::Checkpoint { group, checkpoint }
    };
    for job in [apply(7), apply(8), checkpoint(GroupId(8)), apply(9)] {
        assert!(jobs.send(job).is_ok());
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(match completions.recv().await {
            Some(Input::StateFailed { group, reason }) => (group.0, reason.contains("poison")),
            Some(Input::Applied { group, .. }) => (group.0, false),
            other => panic!("{other:?}"),
        });
    }
    // The flusher answers in its own time.
    seen.sort_unstable();
    assert_eq!(seen, [(7, true), (8, false), (8, true), (9, false)]);
}

/// The next completion, told briefly.
async fn told(completions: &mut UnboundedReceiver<Input>) -> String {
    match completions.recv().await {
        Some(Input::Applied { group, upto, .. }) => format!("{group:?} applied {upto:?}"),
        Some(Input::StateLost { group, .. }) => format!("{group:?} lost"),
        Some(Input::Control { group, at, .. }) => format!("{group:?} stands at {:?}", at.lsn),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_lost_takes_no_job_until_it_is_reopened() {
    let (jobs, mut completions) = worker();
    let lost = || StateJob::Lost { group: GroupId(8), reason: "damage".to_owned() };
    for job in [apply(8), lost(), apply(8), lost(), apply(9)] {
        assert!(jobs.send(job).is_ok());
    }
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(told(&mut completions).await);
    }
    seen.sort_unstable();
    assert_eq!(seen, ["g8 applied l1", "g8 lost", "g9 applied l1"]);
    assert!(jobs.send(StateJob::Reopen { group: GroupId(8), upto: Lsn(1) }).is_ok());
    assert!(jobs.send(apply(8)).is_ok());
    assert_eq!(told(&mut completions).await, "g8 applied l1");
}

#[tokio::test]
async fn a_state_below_its_checkpoint_is_lost() {
    let (jobs, mut completions) = worker();
    let read = |lsn| {
        let prefixes = vec![Bytes::from_static(b"key")];
        StateJob::ReadControl { group: GroupId(8), prefixes, lsn: Lsn(lsn) }
    };
    assert!(jobs.send(read(0)).is_ok());
    assert_eq!(told(&mut completions).await, "g8 stands at l0");
    assert!(jobs.send(read(5)).is_ok());
    assert_eq!(told(&mut completions).await, "g8 lost");
}

#[tokio::test]
async fn the_end_of_a_worker_halts_the_node() {
    let (jobs, mut completions) = worker();
    drop(jobs);
    let mut ended = Vec::new();
    while let Some(Input::StorageFailed { reason }) = completions.recv().await {
        ended.push(reason);
    }
    assert_eq!(ended.len(), 2, "{ended:?}");
    assert!(ended.iter().any(|reason| reason.contains("applier")), "{ended:?}");
}
