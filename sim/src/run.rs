//! One run: a seed's whole course, from blank machines through faults to the healed cluster, on a
//! thread of its own.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use highwater_core::{GroupId, NodeId, planted};
use highwater_node::api::{Consistency, Error, ListQuery, Page};
use madsim::{
    runtime::Runtime,
    task::{AbortHandle, JoinHandle, spawn},
};

use crate::{
    clients::{Client, create, perform},
    cluster::Cluster,
    faults::Faults,
    history::{Ask, Told},
    oracles::{
        liveness::{CONVERGENCE_NS, LIVENESS_TIMEOUT, REST_MS},
        silence::{SETTLING_MS, SILENCE_MS},
    },
    page::acts,
    panics,
    plan::{NEVER_MS, Plan, Profile, Weather},
    report::Report,
    rng::Rng,
    stats::Seen,
    timer::{now_ns, pause_ms, until},
    trace::{Keep, Trace},
    workload::{DATABASES, LATE_DATABASE, last_op},
    world::{Finding, Subject, World},
};

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) profile: Profile,
    /// Whether nodes talk by real QUIC, whatever the plan says.
    pub(crate) quic: Option<bool>,
    /// What is kept of the trace.
    pub(crate) keep: Keep,
    /// Stop at this simulated time.
    pub(crate) until_ns: Option<u64>,
}

/// Runs one seed.
pub(crate) fn run_seed(seed: u64, settings: Settings) -> Report {
    run_plan(seed, Plan::draw(settings.profile, seed), settings)
}

/// Runs a plan, on a thread of its own: what a thread remembers must not pass from one run to the
/// next. `seed` is that of every stream of randomness. What is planted on this thread is on there.
pub(crate) fn run_plan(seed: u64, mut plan: Plan, settings: Settings) -> Report {
    plan.quic = settings.quic.unwrap_or(plan.quic);
    let thread = std::thread::Builder::new().name(format!("seed {seed}")).stack_size(16 << 20);
    let planted = planted::get();
    let run = thread.spawn(move || {
        planted::set(planted);
        run_here(seed, plan, settings)
    });
    run.ok().and_then(|run| run.join().ok()).unwrap_or_else(|| {
        let what = "the run's thread failed outside of the run".to_owned();
        let subject = Subject::default();
        let finding = Some(Finding { oracle: "harness", what, subject, at_ns: 0 });
        Report { seed, finding, ..Report::default() }
    })
}

fn run_here(seed: u64, plan: Plan, settings: Settings) -> Report {
    let runtime = Runtime::with_seed_and_config(seed, madsim::Config::default());
    if settings.keep.story {
        acts::watch();
    }
    let world = Arc::new(World::new(seed, settings.keep, crate::timer::now_ns));
    let plan = Arc::new(plan);
    let slot: Arc<Mutex<Option<Arc<Cluster>>>> = Arc::default();
    let simulated = Arc::new(Mutex::new(0));
    let result = panics::catch(|| {
        let (world, slot, simulated) = (world.clone(), slot.clone(), simulated.clone());
        runtime.block_on(async move {
            supervise(world, plan, &slot, settings.until_ns).await;
            *simulated.lock().unwrap_or_else(PoisonError::into_inner) = now_ns();
        });
    });
    let cluster = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(cluster) = &cluster {
        // What is dropped with the runtime must not reach the disks or the trace.
        cluster.end();
    }
    let (mut finding, mut story) = (world.finding(), world.take_story());
    if let Err(what) = result
        && finding.is_none()
    {
        let at_ns = world.trace(Trace::last_ns);
        if let Some(story) = &mut story {
            story.panics(&what);
        }
        let subject = Subject::default();
        finding = Some(Finding { oracle: "assertion", what, subject, at_ns });
    }
    let ((hash, events), mut trace) = (world.trace(Trace::hash), Vec::new());
    if settings.keep.events {
        world.trace(|kept| kept.save(&mut trace)).unwrap_or_default();
    }
    let (calls, acks) = cluster.map(|cluster| cluster.judge.tally()).unwrap_or_default();
    let simulated_ns = *simulated.lock().unwrap_or_else(PoisonError::into_inner);
    let stats = world.stats();
    Report { seed, finding, stats, hash, events, simulated_ns, calls, acks, story, trace }
}

/// Runs the course until it is done, something is found, or the time asked for is reached.
async fn supervise(
    world: Arc<World>,
    plan: Arc<Plan>,
    slot: &Mutex<Option<Arc<Cluster>>>,
    until_ns: Option<u64>,
) {
    world.fault(0, || format!("{} nodes, {:?}", plan.nodes.len(), plan.first.core));
    let (cluster, endings) = Cluster::new(world.clone(), plan);
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(cluster.clone());
    let tasks = Arc::new(Tasks::default());
    let faults = Faults::new(cluster.clone(), tasks.clone());
    tasks.spawn(cluster.network.clone().pump());
    tasks.spawn(faults.clone().restart(endings));
    tokio::select! {
        biased;
        () = world.failed() => {}
        () = until(until_ns.unwrap_or(u64::MAX / 2)) => {}
        () = course(&cluster, &faults, &tasks) => {}
    }
    cluster.end();
    tasks.abort();
    cluster.kill_all();
    // Killed and aborted tasks are dropped when they are polled next.
    pause_ms(10).await;
}

/// What runs beside the nodes, to be ended with the run: a task that is left behind would keep all
/// memory of it.
#[derive(Default)]
pub(crate) struct Tasks(Mutex<Vec<AbortHandle>>);

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let task = spawn(task);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(task.abort_handle());
        task
    }

    fn abort(&self) {
        for task in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

async fn course(cluster: &Arc<Cluster>, faults: &Faults, tasks: &Tasks) {
    let plan = cluster.plan.clone();
    let mut rng = Rng::stream(cluster.world.seed, "course", 0);
    for node in cluster.nodes() {
        let (cluster, node, after) = (cluster.clone(), *node, rng.below(500));
        tasks.spawn(async move {
            pause_ms(after).await;
            cluster.start(node);
        });
    }
    if plan.from_birth {
        tasks.spawn(faults.clone().strike());
    } else {
        cluster.network.set_weather(Weather::CALM);
        cluster.judge.calm(true);
        if !stand(cluster).await {
            return;
        }
        cluster.network.set_weather(plan.weather);
        cluster.judge.calm(false);
        tasks.spawn(faults.clone().strike());
    }
    let begun = now_ns();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..plan.clients)
        .map(|id| tasks.spawn(Client::new(cluster.clone(), id, stop.clone()).run()))
        .collect();
    if plan.from_birth {
        for name in DATABASES {
            tasks.spawn(create(cluster.clone(), name.to_owned()));
        }
    }
    let late = cluster.clone();
    tasks.spawn(async move {
        pause_ms(late.plan.late_database_ms).await;
        create(late.clone(), LATE_DATABASE.to_owned()).await;
        late.world.saw(Seen::LateDatabase);
    });
    let faults_ns = plan.faults_ms * 1_000_000;
    until(begun + faults_ns).await;
    // A slow cluster under many faults answers few.
    while cluster.judge.tally().0 < plan.calls_min && now_ns() < begun + 2 * faults_ns {
        pause_ms(100).await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let _ = client.await;
    }
    let whole = faults.heal();
    let all = whole.len() == cluster.nodes().len();
    cluster.judge.calm(all);
    if settle(cluster, &whole, now_ns() + CONVERGENCE_NS).await {
        find_out(cluster, &whole).await;
        read_back(cluster, &whole).await;
        cluster.judge.finish(&whole);
        faults.converged(&whole);
        // Where there are slots, or the log is to be of some age at most, log time goes on.
        let ages = cluster.plan.first.core.retention_ms > 0;
        if all && !cluster.plan.slots && !ages {
            pause_ms(SETTLING_MS).await;
            cluster.judge.silence(true);
            pause_ms(SILENCE_MS).await;
        }
    }
}

/// Forms the cluster and creates the first databases, without faults. Whether that was done in
/// time.
async fn stand(cluster: &Arc<Cluster>) -> bool {
    let deadline = until(now_ns() + CONVERGENCE_NS);
    let creating = async {
        for name in DATABASES {
            create(cluster.clone(), name.to_owned()).await;
        }
    };
    tokio::select! {
        biased;
        () = creating => true,
        () = deadline => {
            let what = "no database could be created on a healthy cluster".to_owned();
            cluster.world.fail("liveness", what);
            false
        }
    }
}

/// Waits until what is whole of the cluster works: each database takes a write through each of its
/// nodes, and they agree. Whether that was in time.
async fn settle(cluster: &Arc<Cluster>, whole: &[NodeId], deadline_ns: u64) -> bool {
    let due = DATABASES.len() + usize::from(cluster.plan.late_database_ms < NEVER_MS);
    while cluster.judge.databases().len() < due && now_ns() < deadline_ns {
        pause_ms(100).await;
    }
    let databases = cluster.judge.databases();
    let mut why = write_everywhere(cluster, whole, &databases, deadline_ns).await;
    if why.is_empty() {
        loop {
            why = cluster.judge.unsettled(whole);
            if why.is_empty() && databases.len() >= due {
                return true;
            }
            if now_ns() >= deadline_ns {
                break;
            }
            pause_ms(100).await;
        }
    }
    let bound = CONVERGENCE_NS / 1_000_000_000;
    let what = format!("{bound} s after the healing {} databases stand: {why:?}", databases.len());
    cluster.world.fail("liveness", what);
    false
}

/// One write to each database through each node; why not, where it fails until the deadline.
async fn write_everywhere(
    cluster: &Arc<Cluster>,
    whole: &[NodeId],
    databases: &[(String, GroupId)],
    deadline_ns: u64,
) -> Vec<String> {
    for node in whole {
        for (database, group) in databases {
            loop {
                let told = if cluster.is_up(*node) {
                    let op = last_op(cluster.world.tick());
                    perform(cluster, *node, database, Ask::Write(op), LIVENESS_TIMEOUT).await
                } else {
                    Told::Silence
                };
                if matches!(told, Told::Written(_)) {
                    break;
                }
                if now_ns() >= deadline_ns {
                    return vec![format!(
                        "{node:?}, {group:?} ({database}): a write ends as {told:?}"
                    )];
                }
                pause_ms(50).await;
            }
        }
    }
    Vec::new()
}

/// Waits until the last audit is over, and whatever was done to states is found and rebuilt: nobody
/// reads them meanwhile.
async fn find_out(cluster: &Arc<Cluster>, whole: &[NodeId]) {
    pause_ms(REST_MS).await;
    let deadline_ns = now_ns() + CONVERGENCE_NS;
    while !cluster.judge.undetected(whole).is_empty() || !cluster.judge.unsettled(whole).is_empty()
    {
        if now_ns() >= deadline_ns {
            let what = [cluster.judge.undetected(whole), cluster.judge.unsettled(whole)].concat();
            return cluster.world.fail("audits", format!("not found, or not mended: {what:?}"));
        }
        pause_ms(100).await;
    }
}

/// Reads every database from every replica that is whole, and once linearizably: the judge compares.
async fn read_back(cluster: &Arc<Cluster>, whole: &[NodeId]) {
    for (database, group) in cluster.judge.databases() {
        for node in whole {
            for consistency in [Consistency::Local(None), Consistency::Linearizable] {
                let told = read_all(cluster, *node, (&database, group), consistency).await;
                let whole = |page: &Page| page.applied == cluster.judge.last_applied(group);
                if !matches!(&told, Told::Listed(page) if whole(page)) {
                    let what = format!("{node:?} can't read {database}: {}", told.brief());
                    cluster.world.fail("liveness", what);
                }
            }
        }
    }
}

/// Reads a whole database. The first to read a damaged state may be the one that finds it: what is
/// rebuilt for it may take a while. So may the last step of a new leader's term.
async fn read_all(
    cluster: &Arc<Cluster>,
    node: NodeId,
    (database, group): (&str, GroupId),
    consistency: Consistency,
) -> Told {
    let deadline_ns = now_ns() + CONVERGENCE_NS;
    loop {
        let query = ListQuery { limit: 1_000, values: true, ..ListQuery::default() };
        let ask = Ask::List(query, consistency);
        let told = perform(cluster, node, database, ask, LIVENESS_TIMEOUT).await;
        let early = match &told {
            Told::Failed(Error::NotReady(_)) => true,
            Told::Listed(page) => page.applied < cluster.judge.last_applied(group),
            _ => false,
        };
        if !early || now_ns() >= deadline_ns {
            return told;
        }
        pause_ms(100).await;
    }
}

#[cfg(test)]
mod tests {
    use highwater_core::planted::Planted;

    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_differs_from_the_next() {
        let settings = Settings { until_ns: Some(6_000_000_000), ..Settings::default() };
        let one = run_seed(11, settings);
        assert_eq!(one.finding, None);
        assert!(one.events > 1_000 && one.calls > 10, "{} events", one.events);
        let again = run_seed(11, settings);
        assert_eq!((one.hash, one.events, &one.stats), (again.hash, again.events, &again.stats));
        assert_ne!(one.hash, run_seed(12, settings).hash);
        planted::set(Some(Planted::Nondeterminism));
        let (leaky, other) = (run_seed(11, settings), run_seed(11, settings));
        planted::set(None);
        assert_ne!(leaky.hash, other.hash);
    }

    #[test]
    fn a_seed_on_real_quic_repeats_itself_to_the_last_encrypted_byte() {
        let until_ns = Some(6_000_000_000);
        let settings = Settings { quic: Some(true), until_ns, ..Settings::default() };
        let one = run_seed(11, settings);
        assert_eq!(one.finding, None);
        assert!(one.stats.get(Seen::RealQuic) > 0 && one.acks > 10, "{} acks", one.acks);
        let again = run_seed(11, settings);
        assert_eq!((one.hash, one.events, &one.stats), (again.hash, again.events, &again.stats));
        let cheap = run_seed(11, Settings { quic: Some(false), ..settings });
        assert_eq!((cheap.finding, cheap.stats.get(Seen::RealQuic)), (None, 0));
    }
}
