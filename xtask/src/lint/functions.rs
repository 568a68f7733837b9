//! Rules for functions: length, and types of parameters.

use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Block, FnArg, Signature, Type};

use super::finding::{Finding, Rule};

/// A function with more lines does not fit a screen.
const MAX_LINES: usize = 70;

/// Checks every function of a file, nested ones and methods included.
pub(super) fn check(path: &Path, file: &syn::File, findings: &mut Vec<Finding>) {
    Checker { path, findings }.visit_file(file);
}

struct Checker<'a> {
    path: &'a Path,
    findings: &'a mut Vec<Finding>,
}

impl Checker<'_> {
    fn check_length(&mut self, signature: &Signature, body: &Block) {
        let start = signature.fn_token.span.start().line;
        let lines = body.brace_token.span.close().end().line + 1 - start;
        if lines > MAX_LINES {
            let message = format!("`{}` has {lines} lines of {MAX_LINES}", signature.ident);
            self.findings.push(Finding::at_line(Rule::FunctionLength, self.path, start, message));
        }
    }
}

impl<'ast> Visit<'ast> for Checker<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.check_length(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, method: &'ast syn::ImplItemFn) {
        self.check_length(&method.sig, &method.block);
        visit::visit_impl_item_fn(self, method);
    }

    fn visit_trait_item_fn(&mut self, method: &'ast syn::TraitItemFn) {
        if let Some(body) = &method.default {
            self.check_length(&method.sig, body);
        }
        visit::visit_trait_item_fn(self, method);
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        for parameter in &signature.inputs {
            let FnArg::Typed(parameter) = parameter else { continue };
            if is_tuple(&parameter.ty) {
                let line = parameter.colon_token.spans[0].start().line;
                let message = format!(
                    "a parameter of `{}` is a tuple: name a struct, or pass two values",
                    signature.ident
                );
                self.findings.push(Finding::at_line(
                    Rule::TupleParameter,
                    self.path,
                    line,
                    message,
                ));
            }
        }
        visit::visit_signature(self, signature);
    }
}

/// A tuple, or a reference to one.
#[expect(clippy::wildcard_enum_match_arm, reason = "the enums of syn are not exhaustive")]
fn is_tuple(kind: &Type) -> bool {
    match kind {
        Type::Tuple(tuple) => !tuple.elems.is_empty(),
        Type::Reference(reference) => is_tuple(&reference.elem),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<Rule> {
        let mut findings = Vec::new();
        check(Path::new("a.rs"), &syn::parse_file(text).unwrap(), &mut findings);
        findings.iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn a_function_of_71_lines_is_too_long() {
        let with_lines =
            |count: usize| format!("#[inline]\nfn a() {{\n{}}}", "b();\n".repeat(count - 2));
        assert_eq!(rules(&with_lines(70)), []);
        assert_eq!(rules(&with_lines(71)), [Rule::FunctionLength]);
        let method = format!("impl A {{ {} }}", with_lines(71));
        assert_eq!(rules(&method), [Rule::FunctionLength]);
    }

    #[test]
    fn a_tuple_is_no_type_of_a_parameter() {
        assert_eq!(rules("fn a((b, c): (u8, u8)) {}"), [Rule::TupleParameter]);
        assert_eq!(rules("impl A { fn a(b: &(u8, u8)) {} }"), [Rule::TupleParameter]);
        assert_eq!(rules("fn a(b: &[(u8, u8)], c: impl Fn((u8, u8)) -> ()) -> (u8, u8) {}"), []);
    }
}
