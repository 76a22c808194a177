//! What is wrong with a rule: [`Notes`].

use ambit_core::derive::{RuleEffect, RuleMistake};

/// The mistakes of one rule.
pub(super) struct Notes<'a> {
    /// The rule's field, or that of its part.
    pub(super) at: &'a str,
    pub(super) mistakes: Vec<RuleMistake>,
}

impl<'a> Notes<'a> {
    pub(super) fn at(at: &'a str) -> Self {
        Self { at, mistakes: Vec::new() }
    }

    pub(super) fn add(&mut self, field: &str, message: impl Into<String>, effect: RuleEffect) {
        let field = if field.is_empty() { self.at.to_owned() } else { format!("{}.{field}", self.at) };
        self.mistakes.push(RuleMistake { field, message: message.into(), effect });
    }

    /// A field that changes what happens to a request, and that nothing here knows: such requests fail.
    pub(super) fn unsupported(&mut self, field: &str, is_set: bool) {
        if is_set {
            self.add(field, "is not supported", RuleEffect::Fails);
        }
    }
}
