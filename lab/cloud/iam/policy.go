package iam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// kind tells identity policies, which have no Principal, from trust policies, which have no Resource, and those of other
// resources, which have both.
type kind int

const (
	identityPolicy kind = iota + 1
	trustPolicy
	resourcePolicy
)

// document is a parsed policy.
type document struct {
	Version   string        `json:"Version"`
	ID        string        `json:"Id"`
	Statement statementList `json:"Statement"`
}

type statement struct {
	Sid          string     `json:"Sid"`
	Effect       string     `json:"Effect"`
	Action       stringList `json:"Action"`
	NotAction    stringList `json:"NotAction"`
	Resource     stringList `json:"Resource"`
	NotResource  stringList `json:"NotResource"`
	Principal    *principal `json:"Principal"`
	NotPrincipal any        `json:"NotPrincipal"`
	Condition    conditions `json:"Condition"`
}

// conditions is operator -> key -> values.
type conditions map[string]map[string]stringList

// principal is the Principal element of a trust policy.
type principal struct {
	Any     bool
	AWS     stringList
	Service stringList
}

// stringList is a JSON string, or a list of them. Booleans and numbers of conditions are taken as their text.
type stringList []string

// statementList is one statement or a list of them.
type statementList []statement

// UnmarshalJSON accepts both shapes.
func (l *statementList) UnmarshalJSON(b []byte) error {
	if b = bytes.TrimSpace(b); len(b) > 0 && b[0] == '{' {
		var one statement
		if err := strictDecode(b, &one); err != nil {
			return err
		}
		*l = statementList{one}
		return nil
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	for _, r := range raw {
		var one statement
		if err := strictDecode(r, &one); err != nil {
			return err
		}
		*l = append(*l, one)
	}
	return nil
}

// UnmarshalJSON accepts a scalar or a list of scalars.
func (l *stringList) UnmarshalJSON(b []byte) error {
	var v any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return err
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	for _, item := range list {
		switch item := item.(type) {
		case string:
			*l = append(*l, item)
		case bool, json.Number:
			*l = append(*l, fmt.Sprint(item))
		default:
			return errors.New("expected a string or a list of strings")
		}
	}
	return nil
}

// UnmarshalJSON accepts "*" and the map form.
func (p *principal) UnmarshalJSON(b []byte) error {
	var star string
	if err := json.Unmarshal(b, &star); err == nil {
		if star != "*" {
			return fmt.Errorf("principal %q is not valid", star)
		}
		p.Any = true
		return nil
	}
	var m map[string]stringList
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for k, v := range m {
		switch k {
		case "AWS":
			p.AWS = v
		case "Service":
			p.Service = v
		case "Federated", "CanonicalUser":
			// Accepted and never matched: the lab has no such callers.
		default:
			return fmt.Errorf("principal type %q is not valid", k)
		}
	}
	return nil
}

func strictDecode(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}

// parseDocument reads and checks a policy document.
func parseDocument(text string, k kind) (document, error) {
	var d document
	if len(text) > maxPolicyDocument {
		return d, fmt.Errorf("policy document is longer than %d characters", maxPolicyDocument)
	}
	if err := strictDecode([]byte(text), &d); err != nil {
		return d, fmt.Errorf("parse policy document: %w", err)
	}
	if len(d.Statement) == 0 {
		return d, errors.New("policy document has no statement")
	}
	for i, st := range d.Statement {
		if err := st.check(k); err != nil {
			return d, fmt.Errorf("statement %d: %w", i+1, err)
		}
	}
	return d, nil
}

func (st *statement) check(k kind) error {
	if st.Effect != "Allow" && st.Effect != "Deny" {
		return fmt.Errorf("effect %q is neither Allow nor Deny", st.Effect)
	}
	if (len(st.Action) == 0) == (len(st.NotAction) == 0) {
		return errors.New("exactly one of Action and NotAction is required")
	}
	for _, a := range append(st.Action, st.NotAction...) {
		if a != "*" && !strings.Contains(a, ":") {
			return fmt.Errorf("action %q has no vendor", a)
		}
	}
	if st.NotPrincipal != nil {
		return errors.New("NotPrincipal is not supported by the lab")
	}
	switch k {
	case identityPolicy:
		if st.Principal != nil {
			return errors.New("an identity policy has no Principal")
		}
		if (len(st.Resource) == 0) == (len(st.NotResource) == 0) {
			return errors.New("exactly one of Resource and NotResource is required")
		}
	case trustPolicy:
		if st.Principal == nil {
			return errors.New("a trust policy needs a Principal")
		}
		if len(st.Resource) > 0 || len(st.NotResource) > 0 {
			return errors.New("has prohibited field Resource")
		}
	case resourcePolicy:
		if st.Principal == nil {
			return errors.New("the policy of a resource needs a Principal")
		}
		if (len(st.Resource) == 0) == (len(st.NotResource) == 0) {
			return errors.New("exactly one of Resource and NotResource is required")
		}
	}
	for op := range st.Condition {
		if _, ok := parseOperator(op); !ok {
			return fmt.Errorf("condition operator %q is not supported by the lab", op)
		}
	}
	return nil
}
