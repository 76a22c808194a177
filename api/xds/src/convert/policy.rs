//! Authorization policies.

use ambit_core::model::{
    Action, Authorization, Clause, IpBlock, Match, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
};
use ipnet::IpNet;

use super::common::{decode_enum, decode_ip_as_is, decode_port, each, encode_ip, required};
use super::{DecodeError, Problem};
use crate::proto::istio::security as wire;
use crate::proto::istio::security::string_match::MatchType;

/// Encodes a policy.
pub fn encode_authorization(policy: &Authorization) -> wire::Authorization {
    let clause =
        |clause: &Clause| wire::Clause { matches: clause.matches.iter().map(encode_match).collect() };
    let rule = |rule: &Rule| wire::Rule { clauses: rule.clauses.iter().map(clause).collect() };
    wire::Authorization {
        name: policy.key.name.to_string(),
        namespace: policy.key.namespace.to_string(),
        scope: match policy.scope {
            Scope::Global => wire::Scope::Global,
            Scope::Namespace => wire::Scope::Namespace,
            Scope::WorkloadSelector => wire::Scope::WorkloadSelector,
        }
        .into(),
        action: match policy.action {
            Action::Allow => wire::Action::Allow,
            Action::Deny => wire::Action::Deny,
        }
        .into(),
        rules: policy.rules.iter().map(rule).collect(),
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    }
}

fn encode_match(m: &Match) -> wire::Match {
    let texts = |list: &[StringMatch]| list.iter().map(encode_text).collect();
    let accounts = |list: &[ServiceAccountMatch]| list.iter().map(encode_account).collect();
    let blocks = |list: &[IpBlock]| list.iter().map(encode_block).collect();
    let ports = |list: &[u16]| list.iter().copied().map(Into::into).collect();
    wire::Match {
        namespaces: texts(&m.namespaces),
        not_namespaces: texts(&m.not_namespaces),
        service_accounts: accounts(&m.service_accounts),
        not_service_accounts: accounts(&m.not_service_accounts),
        principals: texts(&m.principals),
        not_principals: texts(&m.not_principals),
        source_ips: blocks(&m.source_ips),
        not_source_ips: blocks(&m.not_source_ips),
        destination_ips: blocks(&m.destination_ips),
        not_destination_ips: blocks(&m.not_destination_ips),
        destination_ports: ports(&m.destination_ports),
        not_destination_ports: ports(&m.not_destination_ports),
        extensions: Vec::new(),
    }
}

fn encode_text(text: &StringMatch) -> wire::StringMatch {
    let kind = match text {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    wire::StringMatch { match_type: Some(kind) }
}

fn encode_account(account: &ServiceAccountMatch) -> wire::ServiceAccountMatch {
    wire::ServiceAccountMatch {
        namespace: account.namespace.to_string(),
        service_account: account.service_account.to_string(),
    }
}

fn encode_block(block: &IpBlock) -> wire::Address {
    wire::Address { address: encode_ip(block.0.addr()), length: block.0.prefix_len().into() }
}

/// Decodes a policy.
pub fn decode_authorization(policy: &wire::Authorization) -> Result<Authorization, DecodeError> {
    decode(policy).map_err(|problem| problem.of(format!("{}/{}", policy.namespace, policy.name)))
}

fn decode(policy: &wire::Authorization) -> Result<Authorization, Problem> {
    let action = match decode_enum("action", policy.action)? {
        wire::Action::Allow => Action::Allow,
        wire::Action::Deny => Action::Deny,
    };
    Ok(Authorization {
        key: PolicyKey {
            namespace: required("namespace", &policy.namespace)?,
            name: required("name", &policy.name)?,
        },
        scope: match decode_enum("scope", policy.scope)? {
            wire::Scope::Global => Scope::Global,
            wire::Scope::Namespace => Scope::Namespace,
            wire::Scope::WorkloadSelector => Scope::WorkloadSelector,
        },
        action,
        rules: each("rules", &policy.rules, |field, rule| {
            let clauses = each("clauses", &rule.clauses, |field, clause| {
                decode_clause(clause, action).map_err(|problem| problem.within(field))
            });
            Ok(Rule { clauses: clauses.map_err(|problem| problem.within(field))? })
        })?,
        dry_run: policy.dry_run,
    })
}

/// An extension of a match is an unknown condition. Ignoring it must not permit more: in an ALLOW policy the
/// match never matches; in a DENY policy its other conditions match, or everything if there are none.
fn decode_clause(clause: &wire::Clause, action: Action) -> Result<Clause, Problem> {
    let mut matches = Vec::with_capacity(clause.matches.len());
    let mut denies_all = false;
    for (index, wire) in clause.matches.iter().enumerate() {
        let decoded = decode_match(wire).map_err(|problem| problem.within(&format!("matches[{index}]")))?;
        match action {
            _ if wire.extensions.is_empty() => matches.push(decoded),
            // A match without any condition never matches.
            Action::Allow => matches.push(Match::default()),
            Action::Deny if decoded.is_empty() => denies_all = true,
            Action::Deny => matches.push(decoded),
        }
    }
    if denies_all {
        // A clause without any match matches everything.
        matches.clear();
    }
    Ok(Clause { matches })
}

fn decode_match(m: &wire::Match) -> Result<Match, Problem> {
    let accounts = |field, list: &[wire::ServiceAccountMatch]| each(field, list, decode_account);
    let ports =
        |field, list: &[u32]| each(field, list, |field, port| decode_port(|| field.to_owned(), *port));
    Ok(Match {
        namespaces: each("namespaces", &m.namespaces, decode_text)?,
        not_namespaces: each("not_namespaces", &m.not_namespaces, decode_text)?,
        service_accounts: accounts("service_accounts", &m.service_accounts)?,
        not_service_accounts: accounts("not_service_accounts", &m.not_service_accounts)?,
        principals: each("principals", &m.principals, decode_text)?,
        not_principals: each("not_principals", &m.not_principals, decode_text)?,
        source_ips: each("source_ips", &m.source_ips, decode_block)?,
        not_source_ips: each("not_source_ips", &m.not_source_ips, decode_block)?,
        destination_ips: each("destination_ips", &m.destination_ips, decode_block)?,
        not_destination_ips: each("not_destination_ips", &m.not_destination_ips, decode_block)?,
        destination_ports: ports("destination_ports", &m.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", &m.not_destination_ports)?,
    })
}

fn decode_text(field: &str, text: &wire::StringMatch) -> Result<StringMatch, Problem> {
    match &text.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.as_str().into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.as_str().into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.as_str().into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(Problem::new(field, "has no known match type")),
    }
}

fn decode_account(field: &str, account: &wire::ServiceAccountMatch) -> Result<ServiceAccountMatch, Problem> {
    Ok(ServiceAccountMatch {
        namespace: required(&format!("{field}.namespace"), &account.namespace)?,
        service_account: required(&format!("{field}.serviceAccount"), &account.service_account)?,
    })
}

fn decode_block(field: &str, block: &wire::Address) -> Result<IpBlock, Problem> {
    let ip = decode_ip_as_is(&format!("{field}.address"), &block.address)?;
    let length = u8::try_from(block.length).ok().and_then(|length| IpNet::new(ip, length).ok());
    let bad = || Problem::new(format!("{field}.length"), format!("/{} does not fit {ip}", block.length));
    length.map(IpBlock).ok_or_else(bad)
}
