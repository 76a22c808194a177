//! What the API says, kind by kind: a list, then every change, again from a list when the thread is lost.
//! Nothing is decided here; [`super::inventory`] makes object events of it.
//!
//! Way in: [`start`].

use std::pin::pin;
use std::time::Duration;

use ambit_core::derive::{Kind, ObjectKey};
use futures::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;

use super::item::{self, Item, Seen, Watched, for_every_kind};

/// Objects in one answer: some megabytes of pods.
const PAGE: u32 = 500;
/// A watch that hears nothing for this long is begun again (the API answers at least that often): so long may
/// a connection be dead before it is noticed.
const WATCH_SECONDS: u32 = 60;
/// Between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A kind that is not installed is looked for this often.
const LOOK: Duration = Duration::from_secs(10);
/// So many answers in a row say that a kind is not installed: one could be an API server that is starting.
const NOT_FOUND_TIMES: u32 = 3;

/// What a watch says.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A full list begins.
    Begin(Kind),
    /// An object of the list.
    Listed(Box<Seen>),
    /// The list is complete: what was not in it is gone.
    Complete(Kind),
    /// An object is new or different.
    Put(Box<Seen>),
    Gone(ObjectKey),
    /// The kind is not installed.
    Absent(Kind),
    /// The watch does not work, and why; or works again.
    Trouble(Kind, Option<String>),
}

/// Watches every kind for as long as the set lives.
pub(crate) fn start(client: &Client, heard: &Sender<Heard>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    macro_rules! start {
        ($kind:ident) => {
            tasks.spawn(follow::<item::$kind>(client.clone(), heard.clone()));
        };
    }
    for_every_kind!(start);
    tasks
}

/// Ends when nobody listens any more.
async fn follow<K: Watched>(client: Client, heard: Sender<Heard>) {
    let api: Api<Item<K>> = Api::all(client);
    let mut config = watcher::Config::default().page_size(PAGE).timeout(WATCH_SECONDS);
    config.label_selector = K::SELECTOR.map(str::to_owned);
    let mut events = pin!(watcher(api, config));
    let mut pause = FIRST_PAUSE;
    let mut not_found = 0;
    let mut trouble = false;
    while let Some(event) = events.next().await {
        let rest = match &event {
            // What was begun may still fail.
            Ok(Event::Init) => None,
            Ok(_) => {
                (pause, not_found) = (FIRST_PAUSE, 0);
                if std::mem::take(&mut trouble) && heard.send(Heard::Trouble(K::KIND, None)).await.is_err() {
                    return;
                }
                None
            }
            Err(error) if is_not_found(error) => {
                not_found += 1;
                Some(if not_found < NOT_FOUND_TIMES { FIRST_PAUSE } else { LOOK })
            }
            Err(error) if is_expired(error) => {
                tracing::debug!(kind = K::NAME, "listed again: the watch lost its place");
                None
            }
            Err(error) => {
                not_found = 0;
                trouble = true;
                let reason = crate::error_chain(error);
                if heard.send(Heard::Trouble(K::KIND, Some(reason))).await.is_err() {
                    return;
                }
                let now = pause;
                pause = (2 * pause).min(LONGEST_PAUSE);
                Some(now)
            }
        };
        let said = match event {
            Ok(Event::Init) => Some(Heard::Begin(K::KIND)),
            Ok(Event::InitApply(item)) => Some(Heard::Listed(item.seen)),
            Ok(Event::InitDone) => Some(Heard::Complete(K::KIND)),
            Ok(Event::Apply(item)) => Some(Heard::Put(item.seen)),
            Ok(Event::Delete(item)) => Some(Heard::Gone(item.seen.key)),
            Err(_) => (not_found >= NOT_FOUND_TIMES).then_some(Heard::Absent(K::KIND)),
        };
        if let Some(said) = said
            && heard.send(said).await.is_err()
        {
            return;
        }
        if let Some(rest) = rest {
            tokio::time::sleep(rest).await;
        }
    }
}

/// The list itself is not there: its kind is not installed.
fn is_not_found(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

/// What the watch would go on from is forgotten, as happens in the ordinary course.
fn is_expired(error: &watcher::Error) -> bool {
    use kube::Error::Api;
    use watcher::Error::{InitialListFailed, WatchError, WatchStartFailed};
    let (WatchError(status) | InitialListFailed(Api(status)) | WatchStartFailed(Api(status))) = error else {
        return false;
    };
    status.code == 410
}
