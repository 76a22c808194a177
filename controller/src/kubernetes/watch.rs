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

use super::discovery::{self, Served};
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
    let mut watch = Watch { sender, backoff: RETRY, not_found: 0, failing: false };
    while watch.serve::<K>(&client).await.is_ok() {}
}

/// The receiver of events is gone.
struct Closed;

/// The watch of one kind.
struct Watch {
    sender: Sender<WatchEvent>,
    backoff: Backoff,
    /// The 404 in a row.
    not_found: u32,
    failing: bool,
}

impl Watch {
    /// Finds the version that is served and watches it until the kind is not found under it.
    async fn serve<K: Watched>(&mut self, client: &Client) -> Result<(), Closed> {
        let found = match K::VERSIONS {
            [only] => Ok(Served::Version(only)),
            readable => discovery::served(client, K::GROUP, K::PLURAL, readable).await,
        };
        let version = match found {
            Ok(Served::Version(version)) => version,
            Ok(Served::Absent) => return self.kind_not_found::<K>().await,
            Ok(Served::Unreadable(versions)) => {
                let readable = K::VERSIONS.join(", ");
                let reason = format!("served as {} only: none of {readable}", versions.join(", "));
                self.failed::<K>(reason).await?;
                return self.pause(ABSENT_PAUSE).await;
            }
            Err(error) => {
                self.failed::<K>(chain(&error)).await?;
                let rest = self.backoff.pause();
                return self.pause(rest).await;
            }
        };
        let api: Api<Item<K>> = Api::all_with(client.clone(), &version);
        let mut config = watcher::Config::default().page_size(PAGE).timeout(WATCH_SECONDS);
        config.label_selector = K::SELECTOR.map(str::to_owned);
        let mut events = pin!(watcher(api, config));
        while let Some(event) = events.next().await {
            match event {
                // The list may still fail.
                Ok(Event::Init) => self.send(WatchEvent::Begin(K::KIND)).await?,
                Ok(event) => self.received::<K>(event).await?,
                Err(error) if is_kind_not_found(&error) => return self.kind_not_found::<K>().await,
                Err(error) if is_expired(&error) => {
                    tracing::debug!(kind = K::NAME, "watch expired; listing again");
                    let rest = self.backoff.pause();
                    self.pause(rest).await?;
                }
                Err(error) => {
                    self.not_found = 0;
                    self.failed::<K>(chain(&error)).await?;
                    let rest = self.backoff.pause();
                    self.pause(rest).await?;
                }
            }
        }
        Ok(())
    }

    /// Reports an event of a watch that works.
    async fn received<K: Watched>(&mut self, event: Event<Item<K>>) -> Result<(), Closed> {
        self.backoff.reset();
        self.not_found = 0;
        if std::mem::take(&mut self.failing) {
            self.send(WatchEvent::Error(K::KIND, None)).await?;
        }
        self.send(match event {
            Event::Init => WatchEvent::Begin(K::KIND),
            Event::InitApply(item) => WatchEvent::Listed(item.seen),
            Event::InitDone => WatchEvent::Complete(K::KIND),
            Event::Apply(item) => WatchEvent::Put(item.seen),
            Event::Delete(item) => WatchEvent::Gone(item.seen.key),
        })
        .await
    }

    /// Reports a failure; objects that are known stay.
    async fn failed<K: Watched>(&mut self, reason: String) -> Result<(), Closed> {
        self.failing = true;
        self.send(WatchEvent::Error(K::KIND, Some(reason))).await
    }

    /// The kind is not installed, if this is not the first time.
    async fn kind_not_found<K: Watched>(&mut self) -> Result<(), Closed> {
        self.not_found += 1;
        if self.not_found < MAX_NOT_FOUND {
            return self.pause(FIRST_PAUSE).await;
        }
        if std::mem::take(&mut self.failing) {
            self.send(WatchEvent::Error(K::KIND, None)).await?;
        }
        self.send(WatchEvent::Absent(K::KIND)).await?;
        self.pause(ABSENT_PAUSE).await
    }

    async fn send(&self, event: WatchEvent) -> Result<(), Closed> {
        self.sender.send(event).await.map_err(|_| Closed)
    }

    async fn pause(&self, rest: Duration) -> Result<(), Closed> {
        tokio::select! {
            () = tokio::time::sleep(rest) => Ok(()),
            () = self.sender.closed() => Err(Closed),
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
