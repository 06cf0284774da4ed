package iam

import (
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// evaluate applies AWS's rule to a set of documents: an explicit deny wins, then any allow, else denied.
func evaluate(docs []document, a awsserver.Access) awsserver.Decision {
	out := awsserver.DeniedByDefault
	for _, d := range docs {
		for i := range d.Statement {
			st := &d.Statement[i]
			if !st.matchesAction(a.Action) || !st.matchesResource(a.Resource) || !st.Condition.hold(a.Context) {
				continue
			}
			if st.Effect == "Deny" {
				return awsserver.DeniedExplicitly
			}
			out = awsserver.Allowed
		}
	}
	return out
}

func (st *statement) matchesAction(action string) bool {
	match := func(p string) bool { return awsserver.Wildcard(strings.ToLower(p), strings.ToLower(action)) }
	if len(st.NotAction) > 0 {
		return !slices.ContainsFunc(st.NotAction, match)
	}
	return slices.ContainsFunc(st.Action, match)
}

func (st *statement) matchesResource(resource string) bool {
	match := func(p string) bool { return awsserver.Wildcard(p, resource) }
	if len(st.NotResource) > 0 {
		return !slices.ContainsFunc(st.NotResource, match)
	}
	return slices.ContainsFunc(st.Resource, match)
}

// operator is a condition operator taken apart: "ForAnyValue:StringLikeIfExists".
type operator struct {
	set      string // "", "ForAnyValue", "ForAllValues"
	base     string
	ifExists bool
}

func parseOperator(s string) (operator, bool) {
	var o operator
	if set, rest, ok := strings.Cut(s, ":"); ok {
		if set != "ForAnyValue" && set != "ForAllValues" {
			return o, false
		}
		o.set, s = set, rest
	}
	o.base, o.ifExists = strings.CutSuffix(s, "IfExists")
	if o.base == "Null" {
		return o, o.set == "" && !o.ifExists
	}
	_, ok := compare(o.base, "", "")
	return o, ok
}

// hold reports whether all conditions are met. Keys are compared without case, as AWS does.
func (c conditions) hold(ctx map[string][]string) bool {
	for name, byKey := range c {
		op, ok := parseOperator(name)
		if !ok {
			return false
		}
		for key, want := range byKey {
			got, present := ctx[strings.ToLower(key)]
			if !op.holds(got, present && len(got) > 0, want) {
				return false
			}
		}
	}
	return true
}

func (o operator) holds(got []string, present bool, want []string) bool {
	if o.base == "Null" {
		return slices.Contains(want, strconv.FormatBool(!present))
	}
	if !present {
		// A missing key satisfies the negated operators, IfExists and ForAllValues, and nothing else.
		return o.ifExists || o.set == "ForAllValues" || isNegated(o.base)
	}
	one := func(g string) bool {
		if isNegated(o.base) {
			return !slices.ContainsFunc(want, func(w string) bool { ok, _ := compare(o.base, w, g); return !ok })
		}
		return slices.ContainsFunc(want, func(w string) bool { ok, _ := compare(o.base, w, g); return ok })
	}
	if o.set == "ForAllValues" {
		return !slices.ContainsFunc(got, func(g string) bool { return !one(g) })
	}
	return slices.ContainsFunc(got, one)
}

func isNegated(base string) bool { return strings.Contains(base, "Not") }

// compare applies an operator to one wanted and one actual value; known is false for an operator the lab lacks.
func compare(base, want, got string) (result, known bool) {
	switch base {
	case "StringEquals":
		return want == got, true
	case "StringNotEquals":
		return want != got, true
	case "StringEqualsIgnoreCase":
		return strings.EqualFold(want, got), true
	case "StringNotEqualsIgnoreCase":
		return !strings.EqualFold(want, got), true
	case "StringLike":
		return awsserver.Wildcard(want, got), true
	case "StringNotLike":
		return !awsserver.Wildcard(want, got), true
	case "ArnEquals", "ArnLike":
		return arnLike(want, got), true
	case "ArnNotEquals", "ArnNotLike":
		return !arnLike(want, got), true
	case "Bool":
		return strings.EqualFold(want, got), true
	case "NumericEquals", "NumericNotEquals", "NumericLessThan", "NumericLessThanEquals", "NumericGreaterThan", "NumericGreaterThanEquals":
		return numeric(base, want, got), true
	}
	return false, false
}

func numeric(base, want, got string) bool {
	w, err1 := strconv.ParseFloat(want, 64)
	g, err2 := strconv.ParseFloat(got, 64)
	if err1 != nil || err2 != nil {
		return false
	}
	switch strings.TrimPrefix(base, "Numeric") {
	case "Equals":
		return g == w
	case "NotEquals":
		return g != w
	case "LessThan":
		return g < w
	case "LessThanEquals":
		return g <= w
	case "GreaterThan":
		return g > w
	default:
		return g >= w
	}
}

// arnLike compares ARNs part by part, so that a wildcard never reaches across a colon of the first five.
func arnLike(pattern, arn string) bool {
	p, a := strings.SplitN(pattern, ":", 6), strings.SplitN(arn, ":", 6)
	if len(p) != len(a) {
		return pattern == "*"
	}
	for i := range p {
		if !awsserver.Wildcard(p[i], a[i]) {
			return false
		}
	}
	return true
}
