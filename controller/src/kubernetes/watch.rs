//! Lists and watches of each kind: a list, then every change; a new list when the watch has expired. Nothing
//! is decided here: [`super::inventory`] turns the events into object events.
//!
//! Entry point: [`start`].

use std::pin::pin;
use std::time::Duration;

use ambit_core::derive::{Kind, ObjectKey};
use ambit_kube::error::{chain, is_not_found};
use ambit_kube::retry::Backoff;
use futures::StreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;

use super::item::{self, Item, Seen, Watched, for_every_kind};

/// Objects in one answer: some megabytes of pods.
const PAGE: u32 = 500;
/// The duration of one watch request: a dead connection is noticed after this time.
const WATCH_SECONDS: u32 = 60;
/// Between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const RETRY: Backoff = Backoff::new(FIRST_PAUSE, Duration::from_secs(5));
/// Between two attempts for a kind that is not installed.
const ABSENT_PAUSE: Duration = Duration::from_secs(10);
/// After so many 404 in a row a kind counts as not installed: one may be of an API server that is starting.
const MAX_NOT_FOUND: u32 = 3;

/// An event of a watch.
#[derive(Debug)]
pub(crate) enum WatchEvent {
    /// A full list begins.
    Begin(Kind),
    /// An object of the list.
    Listed(Box<Seen>),
    /// The list is complete: objects that it lacks are deleted.
    Complete(Kind),
    /// An object is new or has changed.
    Put(Box<Seen>),
    /// An object is deleted.
    Gone(ObjectKey),
    /// The kind is not installed.
    Absent(Kind),
    /// The watch fails, and why; `None`: it works again.
    Error(Kind, Option<String>),
}

/// Watches every kind for as long as the returned set lives.
pub(crate) fn start(client: &Client, events: &Sender<WatchEvent>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    macro_rules! start {
        ($kind:ident) => {
            tasks.spawn(follow::<item::$kind>(client.clone(), events.clone()));
        };
    }
    for_every_kind!(start);
    tasks
}

/// Watches one kind, until the receiver is gone.
async fn follow<K: Watched>(client: Client, sender: Sender<WatchEvent>) {
    let api: Api<Item<K>> = Api::all(client);
    let mut config = watcher::Config::default().page_size(PAGE).timeout(WATCH_SECONDS);
    config.label_selector = K::SELECTOR.map(str::to_owned);
    let mut events = pin!(watcher(api, config));
    let mut backoff = RETRY;
    let mut not_found = 0;
    let mut failing = false;
    while let Some(event) = events.next().await {
        let rest = match &event {
            // The list may still fail.
            Ok(Event::Init) => None,
            Ok(_) => {
                backoff.reset();
                not_found = 0;
                if std::mem::take(&mut failing)
                    && sender.send(WatchEvent::Error(K::KIND, None)).await.is_err()
                {
                    return;
                }
                None
            }
            Err(error) if is_kind_not_found(error) => {
                not_found += 1;
                Some(if not_found < MAX_NOT_FOUND { FIRST_PAUSE } else { ABSENT_PAUSE })
            }
            Err(error) if is_expired(error) => {
                tracing::debug!(kind = K::NAME, "watch expired; listing again");
                None
            }
            Err(error) => {
                not_found = 0;
                failing = true;
                let reason = chain(error);
                if sender.send(WatchEvent::Error(K::KIND, Some(reason))).await.is_err() {
                    return;
                }
                Some(backoff.pause())
            }
        };
        let report = match event {
            Ok(Event::Init) => Some(WatchEvent::Begin(K::KIND)),
            Ok(Event::InitApply(item)) => Some(WatchEvent::Listed(item.seen)),
            Ok(Event::InitDone) => Some(WatchEvent::Complete(K::KIND)),
            Ok(Event::Apply(item)) => Some(WatchEvent::Put(item.seen)),
            Ok(Event::Delete(item)) => Some(WatchEvent::Gone(item.seen.key)),
            Err(_) => (not_found >= MAX_NOT_FOUND).then_some(WatchEvent::Absent(K::KIND)),
        };
        if let Some(report) = report
            && sender.send(report).await.is_err()
        {
            return;
        }
        if let Some(rest) = rest {
            tokio::time::sleep(rest).await;
        }
    }
}

/// The list itself is not found: the kind is not installed.
fn is_kind_not_found(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(error) if is_not_found(error))
}

/// The resource version that the watch would continue from has expired, as it does regularly.
fn is_expired(error: &watcher::Error) -> bool {
    use kube::Error::Api;
    use watcher::Error::{InitialListFailed, WatchError, WatchStartFailed};
    let (WatchError(status) | InitialListFailed(Api(status)) | WatchStartFailed(Api(status))) = error else {
        return false;
    };
    status.code == 410
}
