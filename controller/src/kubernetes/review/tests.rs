use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::UserInfo;

use super::*;

const USER: &str = "system:serviceaccount:mesh:ztunnel";

fn status() -> TokenReviewStatus {
    let extra = [(POD_NAME, "ztunnel-x"), (POD_UID, "1-2-3")];
    let extra = extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec!["ambit-ca".to_owned()]),
        error: None,
        user: Some(UserInfo {
            username: Some(USER.to_owned()),
            extra: Some(BTreeMap::from(extra)),
            ..UserInfo::default()
        }),
    }
}

fn without(key: &str) -> TokenReviewStatus {
    let mut status = status();
    if let Some(extra) = status.user.as_mut().and_then(|user| user.extra.as_mut()) {
        extra.remove(key);
    }
    status
}

#[test]
fn reviewed_tokens() {
    let bound = |namespace: &str, account: &str| Bound {
        namespace: namespace.to_owned(),
        account: account.to_owned(),
        pod: "ztunnel-x".to_owned(),
        uid: "1-2-3".to_owned(),
    };
    let user = |name: &str| {
        let mut status = status();
        if let Some(user) = &mut status.user {
            user.username = Some(name.to_owned());
        }
        status
    };
    let audiences = |audiences: Option<&[&str]>| TokenReviewStatus {
        audiences: audiences.map(|all| all.iter().map(|one| (*one).to_owned()).collect()),
        ..status()
    };
    let rows = [
        ("good", status(), Ok(bound("mesh", "ztunnel"))),
        ("one audience of two", audiences(Some(&["x", "ambit-ca"])), Ok(bound("mesh", "ztunnel"))),
        ("empty", TokenReviewStatus::default(), Err("not_authenticated")),
        (
            "not authenticated",
            TokenReviewStatus { authenticated: Some(false), ..status() },
            Err("not_authenticated"),
        ),
        ("other audience", audiences(Some(&["https://kubernetes"])), Err("audience")),
        ("no audience", audiences(None), Err("audience")),
        ("other service account", user("system:serviceaccount:shop:web"), Err("service_account")),
        ("same name elsewhere", user("system:serviceaccount:shop:ztunnel"), Err("service_account")),
        ("no user", TokenReviewStatus { user: None, ..status() }, Err("service_account")),
        ("no pod", without(POD_NAME), Err("no_pod")),
        ("no pod's uid", without(POD_UID), Err("no_pod")),
    ];
    for (name, status, expected) in rows {
        let found = judge(status, Some(USER), "ambit-ca").map_err(|Refused(reason, _)| reason);
        assert_eq!(found, expected, "{name}");
    }
    // Where any service account may ask.
    let rows = [
        ("a daemon's", user(USER), Ok(bound("mesh", "ztunnel"))),
        ("a workload's", user("system:serviceaccount:shop:web"), Ok(bound("shop", "web"))),
        ("a person's", user("jane"), Err("service_account")),
        ("a node's", user("system:node:node1"), Err("service_account")),
        ("no user", TokenReviewStatus { user: None, ..status() }, Err("service_account")),
        ("no pod", without(POD_NAME), Err("no_pod")),
        ("other audience", audiences(Some(&["https://kubernetes"])), Err("audience")),
    ];
    for (name, status, expected) in rows {
        let found = judge(status, None, "ambit-ca").map_err(|Refused(reason, _)| reason);
        assert_eq!(found, expected, "{name}");
    }
}
