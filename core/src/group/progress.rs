//! A leader's view of one follower: what it confirmed, and what is under way to it.

use alloc::collections::VecDeque;

use crate::types::{Boot, Incarnation, Instant, LoadId, Lsn};

/// How entries flow to a follower. `matched < next` always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// It is not known where the logs agree: one append at a time, whose `prev` is this.
    Probe {
        /// The `prev` of the outstanding append; `None` where none is under way.
        outstanding: Option<Lsn>,
    },
    /// They agree up to `next`: appends are pipelined within the window. Everything before `next`
    /// was sent; what is above `matched` is not confirmed yet.
    Pipeline,
    /// What it needs is not in the log any more: it fetches a snapshot. Whether it was told so.
    Snapshot { told: bool },
}

#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// The data directory that confirmed `matched`, and which start of it. Another one begins with
    /// nothing confirmed: it may have lost what the one before it held.
    pub(crate) incarnation: Incarnation,
    pub(crate) boot: Boot,
    /// Durable there and agreed with this leader.
    pub(crate) matched: Lsn,
    /// The next entry to send.
    pub(crate) next: Lsn,
    pub(crate) flow: Flow,
    /// Appends under way: the last LSN and the bytes of each.
    inflight: VecDeque<(Lsn, usize)>,
    inflight_bytes: usize,
    /// The commit mark that it is known to have heard of, and the one that it is being told: with
    /// which round.
    committed: Lsn,
    notice: Option<(u64, Lsn)>,
    /// The highest round of reads sent, and confirmed.
    pub(crate) round_sent: u64,
    pub(crate) round: u64,
    /// When it last answered, or was first waited for.
    pub(crate) answered: Instant,
    pub(crate) loading: Option<LoadId>,
    /// When the last one of those was asked for.
    pub(crate) loading_since: Instant,
    /// No more is read for it before then.
    pub(crate) rests_until: Instant,
}

impl Progress {
    pub(crate) fn new(incarnation: Incarnation, boot: Boot, last: Lsn, now: Instant) -> Progress {
        Progress {
            incarnation,
            boot,
            matched: Lsn(0),
            next: last.next(),
            flow: Flow::Probe { outstanding: None },
            inflight: VecDeque::new(),
            inflight_bytes: 0,
            committed: Lsn(0),
            notice: None,
            round_sent: 0,
            round: 0,
            answered: now,
            loading: None,
            loading_since: now,
            rests_until: now,
        }
    }

    /// Whether another append may go out.
    pub(crate) fn has_window(&self, messages_max: usize, bytes_max: usize) -> bool {
        let waits =
            matches!(self.flow, Flow::Probe { outstanding: Some(_) } | Flow::Snapshot { .. });
        !waits && self.inflight.len() < messages_max && self.inflight_bytes < bytes_max
    }

    /// Whether it has confirmed everything that the log holds, up to `appended`.
    pub(crate) fn has_all(&self, appended: Lsn) -> bool {
        self.flow == Flow::Pipeline && self.matched >= appended
    }

    /// Whether it is being asked where it stands.
    pub(crate) fn is_probed(&self) -> bool {
        matches!(self.flow, Flow::Probe { .. })
    }

    /// Whether a message is due that carries no entry: to ask where it stands, or to tell that all
    /// it has is committed.
    pub(crate) fn is_owed(&self, appended: Lsn, committed: Lsn) -> bool {
        let told = self.notice.map_or(self.committed, |(_, lsn)| lsn);
        let unasked = self.flow == Flow::Probe { outstanding: None } && self.loading.is_none();
        unasked || (self.has_all(appended) && told < committed)
    }

    /// It is told of a commit mark after all entries before it, with a new round: where it takes
    /// something of that round, it has taken the mark.
    pub(crate) fn notified(&mut self, round: u64, committed: Lsn) {
        self.notice = Some((round, committed));
    }

    /// Whether an answer is awaited.
    pub(crate) fn awaits(&self) -> bool {
        let unconfirmed = match self.flow {
            Flow::Probe { outstanding } => outstanding.is_some(),
            Flow::Pipeline => self.matched.next() < self.next,
            Flow::Snapshot { told } => told,
        };
        unconfirmed || self.round < self.round_sent
    }

    /// An append of entries up to `last` goes out; `prev` is the LSN before its first.
    pub(crate) fn sent(&mut self, prev: Lsn, last: Lsn, bytes: usize, now: Instant) {
        if !self.awaits() {
            self.answered = now;
        }
        if let Flow::Probe { outstanding } = &mut self.flow {
            *outstanding = Some(prev);
        }
        if last > prev {
            self.next = last.next();
            self.inflight.push_back((last, bytes));
            self.inflight_bytes += bytes;
        }
    }

    /// What it needs is not there. Whether it is to be told now.
    pub(crate) fn tell_pruned(&mut self, now: Instant) -> bool {
        let tells = self.flow != Flow::Snapshot { told: true };
        if tells {
            if !self.awaits() {
                self.answered = now;
            }
            self.flow = Flow::Snapshot { told: true };
            self.inflight.clear();
            self.inflight_bytes = 0;
        }
        tells
    }

    /// It confirmed `durable`.
    pub(crate) fn accepted(&mut self, durable: Lsn, now: Instant) {
        self.answered = now;
        self.matched = self.matched.max(durable);
        self.next = self.next.max(self.matched.next());
        while let Some((last, bytes)) = self.inflight.front().copied() {
            if last > self.matched {
                break;
            }
            self.inflight.pop_front();
            self.inflight_bytes -= bytes;
        }
        self.flow = Flow::Pipeline;
    }

    /// It confirmed a round of reads.
    pub(crate) fn confirmed_round(&mut self, round: u64) {
        self.round = self.round.max(round);
        self.round_sent = self.round_sent.max(round);
        if let Some((_, committed)) = self.notice.take_if(|(asked, _)| *asked <= round) {
            self.committed = committed;
        }
    }

    /// It could not follow, or not with all; its log may agree up to `hint`. An answer to an append
    /// that was already given up changes nothing. One that asks for the same again has no room: it
    /// gets it when the answer is overdue. `first` is the first entry that the log has: what comes before
    /// comes as a snapshot.
    pub(crate) fn rejected(&mut self, hint: Lsn, first: Lsn, now: Instant) {
        self.answered = now;
        if let Flow::Snapshot { .. } = self.flow {
            if hint.next() >= first {
                self.next = hint.max(self.matched).next();
                self.probe();
            }
            return;
        }
        if let Flow::Probe { outstanding } = self.flow
            && outstanding.is_none_or(|prev| hint == prev)
        {
            return;
        }
        self.notice = None;
        // Further on than was sent is only who has a snapshot.
        let has_more = hint >= self.next;
        let back_to = if has_more { hint } else { hint.max(self.matched).min(self.next.prev()) };
        self.next = back_to.next();
        while self.inflight.back().is_some_and(|(last, _)| *last > back_to) {
            self.inflight_bytes -= self.inflight.pop_back().map_or(0, |(_, bytes)| bytes);
        }
        self.probe();
    }

    /// Asks again where it stands: answers are overdue, or it came back. What was sent last may
    /// have arrived, so nothing is repeated before it is known to be missing.
    pub(crate) fn probe(&mut self) {
        self.flow = Flow::Probe { outstanding: None };
        self.round_sent = self.round;
        self.committed = Lsn(0);
        self.notice = None;
    }

    /// What comes next can't be read now: as if it had been sent, and no answer came.
    pub(crate) fn hold(&mut self, now: Instant) {
        self.answered = now;
        self.flow = Flow::Probe { outstanding: Some(self.next.prev()) };
    }

    /// Whether it waits for an answer to a question that `next` may go with as well.
    pub(crate) fn is_held(&self) -> bool {
        self.flow == Flow::Probe { outstanding: Some(self.next.prev()) }
    }

    pub(crate) fn check(&self, messages_max: usize) {
        assert!(self.matched < self.next, "matched < next: {self:?}");
        assert!(self.inflight.len() <= messages_max, "the window holds: {self:?}");
        assert!(self.round <= self.round_sent, "a round is confirmed after it was sent: {self:?}");
    }
}
