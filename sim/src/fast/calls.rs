//! The calls of clients inside a node: what `shells/node`'s handle does, as state machines. A call
//! finds the database's group, has its request carried out by the leader or waits for its read
//! index, tries again only after a definite refusal, and ends by its deadline.

use std::{collections::BTreeMap, time::Duration};

use highwater_core::{GroupId, Lsn, NodeId, Reply};
use highwater_node::{
    api::{Consistency, Error, Got, Page},
    outcome::{Next, forward_reply_of, next_after, receipt_of},
};
use highwater_wire::peer::{ForwardReply, ForwardRequest};

use super::{
    agenda::now_ns,
    cluster::{Cluster, Event},
    driver::{Answer, Arrival, Ask as Asked, Driver},
    machine::{Machine, Process},
    state::State,
};
use crate::history::{Ask, Call, Told};

/// How long a definite refusal that will pass soon is waited out at most before the next try.
const RETRY_NS: u64 = 20_000_000;

/// What a call is at.
enum Work {
    /// It has not begun.
    Begins,
    /// Reads the system group's index, since the catalog applied here does not have the database.
    Resolves,
    /// Has this carried out by the group's leader.
    Leads(GroupId, ForwardRequest),
    /// Reads the group's index.
    Reads(GroupId),
    /// Waits until this much is applied here.
    Catches(GroupId, Lsn),
    /// The database stands; waits until it has a leader.
    Stands { group: GroupId, existed: bool },
}

/// A call that is under way.
struct Pending {
    caller: usize,
    call: Call,
    process: u64,
    deadline_ns: u64,
    /// When nobody waits for it any more.
    patience_ends_ns: u64,
    /// The pauses of the machine at the beginning; `None` where it was paused then.
    pauses: Option<u64>,
    work: Work,
    /// The state of the routes that it has seen.
    seen: u64,
    /// Who led when it last asked the driver.
    leader: Option<NodeId>,
    /// What the driver answered.
    heard: Option<Answer>,
    /// Rises each time that it goes on: what woke an earlier turn does not wake this one.
    turn: u64,
}

/// All calls that are under way.
#[derive(Default)]
pub(super) struct Calls {
    pending: BTreeMap<u64, Pending>,
    /// When each caller's call is looked after: one alarm each, set anew only when it comes up.
    watched: BTreeMap<usize, u64>,
}

impl Calls {
    /// Looks after a caller's call at this time; when the alarm is to be set, if there is none.
    fn watch(&mut self, caller: usize, at_ns: u64) -> Option<u64> {
        match self.watched.get(&caller) {
            Some(alarm_ns) if *alarm_ns <= at_ns => None,
            _ => {
                self.watched.insert(caller, at_ns);
                Some(at_ns)
            }
        }
    }
}

/// How a call goes on.
enum Flow {
    /// It looks again at once.
    Again,
    /// It asks the driver.
    Asks(Arrival),
    /// It waits for a change of routes, and at most until then.
    Parks(u64),
    /// It waits for an apply, and at most until its deadline.
    Catches,
    Ends(Told),
}

impl Flow {
    fn fails(error: Error) -> Flow {
        Flow::Ends(Told::Failed(error))
    }
}

impl Cluster {
    /// Makes a call on a node that runs. The caller is told how it ends.
    pub(super) fn call(
        &mut self,
        caller: usize,
        node: NodeId,
        database: &str,
        ask: Ask,
        timeout: Duration,
    ) {
        let id = self.world.tick();
        let call = Call { id, node, database: database.to_owned(), ask };
        self.judge.calls(&call);
        let pauses = self.machine(node).pauses;
        // A clock may be slow by a tenth; a call gets a second beyond its deadline.
        let timeout_ns = timeout.as_nanos() as u64;
        let patience_ends_ns = now_ns() + timeout_ns * 10 / 8 + 1_000_000_000;
        let Some(process) = self.running(node) else { return };
        let pending = Pending {
            caller,
            call,
            process: process.id,
            deadline_ns: now_ns() + timeout_ns,
            patience_ends_ns,
            pauses: (!process.paused).then_some(pauses),
            work: Work::Begins,
            seen: process.driver().map_or(0, |driver| driver.changes),
            leader: None,
            heard: None,
            turn: 0,
        };
        self.calls.pending.insert(id, pending);
        if let Some(at_ns) = self.calls.watch(caller, patience_ends_ns) {
            self.agenda.at(at_ns, Event::Patience { caller });
        }
        self.advance(id);
    }

    fn end_call(&mut self, pending: Pending, told: Told) {
        self.judge.told(&pending.call, &told);
        self.told(pending.caller, pending.call, told);
    }

    /// A process is gone, and with it all that its calls would have been told.
    pub(super) fn silence_calls(&mut self, process: u64) {
        let of = self.calls.pending.iter().filter(|(_, pending)| pending.process == process);
        for id in of.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(pending) = self.calls.pending.remove(&id) {
                self.end_call(pending, Told::Silence);
            }
        }
    }

    /// A caller's call may be overdue: its node must have stood still then.
    pub(super) fn look_after(&mut self, caller: usize) {
        let at_ns = now_ns();
        if self.calls.watched.get(&caller) == Some(&at_ns) {
            self.calls.watched.remove(&caller);
        }
        let mut pending = self.calls.pending.iter();
        let Some((id, pending)) = pending.find(|(_, pending)| pending.caller == caller) else {
            return;
        };
        let (id, ends_ns) = (*id, pending.patience_ends_ns);
        if ends_ns > at_ns {
            if let Some(at_ns) = self.calls.watch(caller, ends_ns) {
                self.agenda.at(at_ns, Event::Patience { caller });
            }
            return;
        }
        let Some(pending) = self.calls.pending.remove(&id) else { return };
        let node = pending.call.node;
        if pending.pauses == Some(self.machine(node).pauses) {
            let what = format!("a call to {node:?} did not end within its deadline");
            self.world.fail("deadline", what);
        }
        self.end_call(pending, Told::Silence);
    }

    /// What a call waits for in this turn of it, or its timer, has come.
    pub(super) fn wake_call(&mut self, id: u64, turn: u64) {
        if self.calls.pending.get(&id).is_some_and(|pending| pending.turn == turn) {
            self.advance(id);
        }
    }

    /// Leaders or databases are not what they were.
    pub(super) fn reroute_call(&mut self, id: u64, turn: u64) {
        let Some(pending) = self.calls.pending.get(&id) else { return };
        if pending.turn == turn {
            let driver = self.running(pending.call.node).and_then(Process::driver);
            let changes = driver.map_or(0, |driver| driver.changes);
            if let Some(pending) = self.calls.pending.get_mut(&id) {
                pending.seen = changes;
            }
            self.advance(id);
        }
    }

    /// The driver answers.
    pub(super) fn call_answered(&mut self, id: u64, answer: Answer) {
        if let Some(pending) = self.calls.pending.get_mut(&id) {
            pending.heard = Some(answer);
            self.advance(id);
        }
    }

    /// A call goes on until it waits or ends.
    fn advance(&mut self, id: u64) {
        loop {
            let Some(mut pending) = self.calls.pending.remove(&id) else { return };
            pending.turn += 1;
            let (node, turn, deadline_ns) = (pending.call.node, pending.turn, pending.deadline_ns);
            let (process, flow) = match self.running(node) {
                None => return self.end_call(pending, Told::Silence),
                // It goes on with the process.
                Some(process) if process.paused => (process.id, None),
                Some(process) => {
                    let (machine, nodes) = (self.machine(node), self.plan.nodes.as_slice());
                    let look = process.driver().map(|driver| Look { machine, driver, nodes, id });
                    (process.id, look.map(|look| look.at(&mut pending)))
                }
            };
            if let Some(Flow::Ends(told)) = flow {
                return self.end_call(pending, told);
            }
            self.calls.pending.insert(id, pending);
            let until_ns = match flow {
                Some(Flow::Again | Flow::Ends(_)) => continue,
                Some(Flow::Asks(arrival)) => return self.deliver(node, process, arrival),
                Some(Flow::Parks(until_ns)) => {
                    self.wait_list(node, process, |process| &mut process.parked, (id, turn));
                    until_ns
                }
                Some(Flow::Catches) => {
                    self.wait_list(node, process, |process| &mut process.behind, (id, turn));
                    deadline_ns
                }
                None => {
                    return self.wait_list(node, process, |process| &mut process.held, (id, turn));
                }
            };
            return self.agenda.at(until_ns, Event::Call { call: id, turn });
        }
    }

    fn wait_list(
        &mut self,
        node: NodeId,
        process: u64,
        list: impl FnOnce(&mut Process) -> &mut Vec<(u64, u64)>,
        call: (u64, u64),
    ) {
        if let Some(process) = self.process(node, process) {
            list(process).push(call);
        }
    }
}

/// What a call sees of its node.
struct Look<'a> {
    machine: &'a Machine,
    driver: &'a Driver,
    nodes: &'a [NodeId],
    id: u64,
}

impl Look<'_> {
    /// One look at the call's work.
    fn at(&self, call: &mut Pending) -> Flow {
        if let Some(reason) = self.driver.node.halted() {
            return Flow::fails(Error::NotReady(reason.to_owned()));
        }
        match (&call.work, call.heard.take()) {
            (Work::Begins, _) => self.begins(call),
            (Work::Resolves, None) => self.reads(call, GroupId::SYSTEM),
            (Work::Reads(group), None) => self.reads(call, *group),
            (Work::Resolves | Work::Reads(_), Some(answer)) => self.may_read(call, answer),
            (Work::Leads(group, _), None) => self.leads(call, *group),
            (Work::Leads(..), Some(answer)) => self.was_led(call, answer),
            (Work::Catches(group, lsn), _) => self.catches(call, *group, *lsn),
            (Work::Stands { group, existed }, _) => self.stands(call, *group, *existed),
        }
    }

    fn begins(&self, call: &mut Pending) -> Flow {
        let name = &call.call.database;
        let known = self.driver.known(name);
        call.work = match (&call.call.ask, known) {
            (Ask::Create, Some(group)) => Work::Stands { group, existed: true },
            (Ask::Create, None) => {
                let request = ForwardRequest::CreateDatabase { name: name.clone() };
                Work::Leads(GroupId::SYSTEM, request)
            }
            (_, Some(group)) => return self.resolved(call, group),
            (_, None) => Work::Resolves,
        };
        Flow::Again
    }

    /// The database's group is known.
    fn resolved(&self, call: &mut Pending, group: GroupId) -> Flow {
        call.work = match &call.call.ask {
            Ask::Write(op) | Ask::Once(op, _) => {
                let (payload, once) = (op.encode(), call.call.ask.once().cloned());
                Work::Leads(group, ForwardRequest::Propose { group, payload, once })
            }
            Ask::Transfer(to) if !self.nodes.contains(to) => return Flow::fails(Error::NoSuchNode),
            Ask::Transfer(to) => Work::Leads(group, ForwardRequest::Transfer { group, to: *to }),
            Ask::Get(_, consistency) | Ask::List(_, consistency) => match consistency {
                Consistency::Linearizable => Work::Reads(group),
                Consistency::Local(None) => return self.answer(call, group),
                Consistency::Local(Some(bookmark)) if bookmark.group != group => {
                    return Flow::fails(Error::Recreated);
                }
                Consistency::Local(Some(bookmark)) => Work::Catches(group, bookmark.lsn),
            },
            Ask::Create => unreachable!("it resolves no name"),
            Ask::Changes(..) | Ask::Consume(..) | Ask::Slot(..) => {
                unreachable!("there are no streams without bytes")
            }
        };
        Flow::Again
    }

    /// What is left of the call's time, in microseconds.
    fn left_us(call: &Pending) -> Option<u64> {
        let left_ns = call.deadline_ns.saturating_sub(now_ns());
        (left_ns > 0).then_some(left_ns / 1_000)
    }

    /// Waits for a change of routes, and at most for a moment where one is given.
    fn waits(&self, call: &mut Pending, moment_ns: Option<u64>) -> Flow {
        if Look::left_us(call).is_none() {
            return Flow::fails(Error::NoLeader { leader: None });
        }
        if call.seen != self.driver.changes {
            call.seen = self.driver.changes;
            return Flow::Again;
        }
        let until_ns = moment_ns.map_or(u64::MAX, |ns| now_ns() + ns);
        Flow::Parks(until_ns.min(call.deadline_ns))
    }

    // --- writes ---

    fn leads(&self, call: &mut Pending, group: GroupId) -> Flow {
        call.leader = self.driver.leader(group);
        let Some(budget_us) = Look::left_us(call) else {
            return Flow::fails(Error::NoLeader { leader: call.leader });
        };
        let (Some(to), Work::Leads(_, request)) = (call.leader, &call.work) else {
            return self.waits(call, None);
        };
        let request = request.clone();
        Flow::Asks(if to == self.machine.node {
            Arrival::Ask { call: self.id, ask: Asked::Forwardable(request), budget_us }
        } else {
            Arrival::Forward { call: self.id, to, request, budget_us }
        })
    }

    fn was_led(&self, call: &mut Pending, answer: Answer) -> Flow {
        let reply = match answer {
            Answer::Core(reply) => reply.map(|reply| forward_reply_of(Some(reply))),
            Answer::Peer(reply) => reply,
        };
        if let Some(ForwardReply::Rejected(reject)) = reply {
            return match next_after(reject, call.leader) {
                Next::Fail(error) => Flow::fails(error),
                // What was refused may pass without a change of routes.
                Next::TryAgain => self.waits(call, Some(RETRY_NS)),
            };
        }
        let Work::Leads(group, _) = call.work else { return Flow::fails(Error::Unknown) };
        match (&call.call.ask, reply) {
            (
                Ask::Write(_) | Ask::Once(..),
                Some(ForwardReply::Applied { lsn, term, outcome, replayed }),
            ) => {
                let receipt = receipt_of(group, (lsn, term), &outcome, replayed);
                Flow::Ends(receipt.map_or_else(Told::Failed, Told::Written))
            }
            (Ask::Create, Some(ForwardReply::Created { group, existed })) => {
                call.work = Work::Stands { group, existed };
                Flow::Again
            }
            (Ask::Transfer(_), Some(ForwardReply::Transferred { .. })) => {
                Flow::Ends(Told::Transferred)
            }
            (Ask::Transfer(_), _) => {
                Flow::fails(Error::NoLeader { leader: self.driver.leader(group) })
            }
            _ => Flow::fails(Error::Unknown),
        }
    }

    fn stands(&self, call: &mut Pending, group: GroupId, existed: bool) -> Flow {
        if self.driver.leader(group).is_some() {
            return Flow::Ends(Told::Created(group, existed));
        }
        match self.waits(call, None) {
            // It stands by now, whatever the caller is told.
            Flow::Ends(_) if !existed => Flow::fails(Error::Unknown),
            flow => flow,
        }
    }

    // --- reads ---

    fn reads(&self, call: &mut Pending, group: GroupId) -> Flow {
        call.leader = self.driver.leader(group);
        let Some(budget_us) = Look::left_us(call) else {
            return Flow::fails(Error::NoLeader { leader: call.leader });
        };
        if call.leader.is_none() {
            return self.waits(call, None);
        }
        Flow::Asks(Arrival::Ask { call: self.id, ask: Asked::Read(group), budget_us })
    }

    fn may_read(&self, call: &mut Pending, answer: Answer) -> Flow {
        match answer {
            Answer::Core(Some(Reply::Readable { .. })) => match call.work {
                Work::Reads(group) => self.answer(call, group),
                _ => match self.driver.known(&call.call.database) {
                    Some(group) => self.resolved(call, group),
                    None => Flow::fails(Error::NoSuchDatabase),
                },
            },
            Answer::Core(Some(Reply::Rejected(reject))) => match next_after(reject, call.leader) {
                Next::Fail(error) => Flow::fails(error),
                Next::TryAgain => self.waits(call, Some(RETRY_NS)),
            },
            _ => Flow::fails(Error::NoLeader { leader: call.leader }),
        }
    }

    fn catches(&self, call: &Pending, group: GroupId, lsn: Lsn) -> Flow {
        let applied = self.machine.states.get(&group).map_or(Lsn(0), State::applied);
        if applied >= lsn {
            self.answer(call, group)
        } else if Look::left_us(call).is_none() {
            Flow::fails(Error::Behind { applied })
        } else {
            Flow::Catches
        }
    }

    /// This node's state answers.
    fn answer(&self, call: &Pending, group: GroupId) -> Flow {
        let blank = State::default();
        let state = self.machine.states.get(&group).unwrap_or(&blank);
        let (applied, term) = (state.applied(), self.driver.term(group));
        Flow::Ends(match &call.call.ask {
            Ask::Get(key, _) => Told::Got(Got { group, applied, term, record: state.get(key) }),
            Ask::List(query, _) => {
                let (records, more) = state.list(query);
                Told::Listed(Page { group, applied, term, records, more })
            }
            _ => unreachable!("not a read"),
        })
    }
}
