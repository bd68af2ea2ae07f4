//! Keyed writes of a group: the leader answers a retry with what came of the first request, joins it
//! to that one while it is under way, or appends it.
//!
//! **A log holds a key once within its window.** A leader appends a keyed write only after it has
//! applied the start of its term, so that whatever its log holds of earlier terms is in its table; and
//! only where neither the table remembers the key at the log time that the new entry carries, nor an
//! entry of its own has it that is not applied yet. Every log that has the entry has the same before it.

use alloc::{collections::BTreeMap, vec};

use bytes::Bytes;

use super::{Asker, Group, Role};
use crate::{
    context::Context,
    entry::{Kind, Outcome},
    io::{Reject, Reply},
    once::{OnceEntry, OnceKey},
    planted::{self, Planted},
    types::{Lsn, RequestId, Term},
};

/// Requests that wait for one keyed entry; beyond: `Busy`.
const ASKERS_MAX: usize = 1024;

/// Keyed entries of this leader that are not applied yet, by key.
#[derive(Default)]
pub(super) struct LeaderOnce(BTreeMap<Bytes, (Lsn, OnceKey)>);

impl LeaderOnce {
    /// What came of those is in a snapshot.
    pub(super) fn forget_upto(&mut self, lsn: Lsn) {
        self.0.retain(|_, (at, _)| *at > lsn);
    }
}

/// Where a keyed request stands.
enum Standing {
    /// It has an answer.
    Told(Reply),
    /// The entry at this LSN is its own.
    UnderWay(Lsn),
    /// It is to be appended, at that log time.
    New { now_ms: u64 },
}

impl Group {
    /// Appends a client's keyed operation, unless that has been done.
    pub(crate) fn propose_once(
        &mut self,
        ctx: &mut Context,
        request: RequestId,
        once: OnceKey,
        op: Bytes,
    ) {
        let standing = match self.standing(ctx, &once) {
            Ok(standing) => standing,
            Err(reject) => return ctx.reject(request, reject),
        };
        match standing {
            Standing::Told(reply) => ctx.reply(request, reply),
            Standing::UnderWay(lsn) => match self.proposals.get_mut(&(lsn, self.term)) {
                Some(Asker::Once(askers)) if askers.len() < ASKERS_MAX => askers.push(request),
                _ => ctx.reject(request, Reject::Busy),
            },
            Standing::New { now_ms } => self.append_once(ctx, request, once, op, now_ms),
        }
    }

    fn standing(&mut self, ctx: &Context, once: &OnceKey) -> Result<Standing, Reject> {
        if self.quarantined.is_some() {
            return Err(Reject::Quarantined);
        }
        if !once.is_bounded() {
            return Err(Reject::TooLarge);
        }
        let Role::Leader(leader) = &self.role else {
            return Err(Reject::NotLeader { leader: self.leader(ctx) });
        };
        let knows_the_log = self.log.marks().applied() >= leader.term_start
            || planted::is(Planted::OnceBeforeTermStart);
        if !knows_the_log {
            return Err(Reject::KeysUnknown);
        }
        let now_ms = self.log_time_us(ctx).ok_or(Reject::KeysUnknown)? / 1000;
        if let Some(known) = self.once.get(&once.key, now_ms) {
            if known.digest != once.digest {
                return Err(Reject::KeyMismatch);
            }
            let (lsn, term, outcome) = (known.lsn, known.term, known.outcome.clone());
            return Ok(Standing::Told(Reply::Applied { lsn, term, outcome, replayed: true }));
        }
        let Role::Leader(leader) = &self.role else { return Err(Reject::KeysUnknown) };
        let under_way = &leader.once.0;
        match under_way.get(&once.key) {
            Some((lsn, known)) if known == once => Ok(Standing::UnderWay(*lsn)),
            Some(_) => Err(Reject::KeyMismatch),
            None if under_way.len() + self.once.len(now_ms) >= ctx.config.once_max => {
                Err(Reject::KeysFull)
            }
            None => Ok(Standing::New { now_ms }),
        }
    }

    fn append_once(
        &mut self,
        ctx: &mut Context,
        request: RequestId,
        once: OnceKey,
        op: Bytes,
        now_ms: u64,
    ) {
        if let Some(reject) = self.refuse_proposal(ctx, OnceEntry::HEAD_MAX + op.len()) {
            return ctx.reject(request, reject);
        }
        let expires_ms = now_ms.saturating_add(ctx.config.once_window_ms);
        let entry = OnceEntry { time_ms: now_ms, expires_ms, once: once.clone(), op };
        let lsn = self.append(ctx, Kind::Once, entry.encode());
        self.proposals.insert((lsn, self.term), Asker::Once(vec![request]));
        if let Role::Leader(leader) = &mut self.role {
            leader.once.0.insert(once.key.clone(), (lsn, once));
        }
    }

    /// A keyed operation is applied.
    pub(super) fn remember(&mut self, lsn: Lsn, term: Term, entry: &OnceEntry, outcome: &Outcome) {
        if let Some(time_ms) = self.slots.take_time(lsn, entry.time_ms) {
            self.once.take((lsn, term), entry, time_ms, outcome.clone());
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.once.0.remove(&entry.once.key);
        }
    }
}

/// Answers everybody who waits for a keyed operation: the first one brought it.
pub(super) fn answer_all(
    ctx: &mut Context,
    askers: &[RequestId],
    (lsn, term): (Lsn, Term),
    outcome: &Outcome,
) {
    for (index, request) in askers.iter().enumerate() {
        let (outcome, replayed) = (outcome.clone(), index > 0);
        ctx.reply(*request, Reply::Applied { lsn, term, outcome, replayed });
    }
}
