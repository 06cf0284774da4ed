package strictjson_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/strictjson"
)

func TestObject(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"empty object", `{}`, ""},
		{"space around", " {\"a\": [1, {\"b\": null}]}\r\n\t", ""},
		{"keys that differ in case", `{"a":1,"A":2}`, ""},
		{"empty", ``, "an object is expected"},
		{"list", `[]`, "an object is expected"},
		{"null", `null`, "an object is expected"},
		{"a key twice", `{"a":1,"b":2,"a":1}`, `key "a" occurs twice`},
		{"a key twice, once escaped", `{"a":1,"\u0061":2}`, `key "a" occurs twice`},
		{"not UTF-8", "{\"a\":\"\xff\"}", "not UTF-8"},
		{"no end", `{"a":1`, "does not end"},
		{"no value", `{"a":}`, "cannot be read"},
		{"two objects", `{}{}`, "after the end"},
		{"a closing brace more", `{}}`, "after the end"},
		{"a letter more", `{} x`, "after the end"},
		{"a NUL more", "{}\x00", "after the end"},
		{"key without quotes", `{a:1}`, "a key is expected"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := strictjson.Object([]byte(tt.text))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Object(%q) = %v, want %q", tt.text, err, tt.want)
			}
		})
	}
}

func TestStrings(t *testing.T) {
	var a, b string
	into := map[string]*string{"a": &a, "b": &b}
	if err := strictjson.Strings([]byte(`{"b":"2","a":"1"}`), into); err != nil || a != "1" || b != "2" {
		t.Errorf("Strings() = %v, a %q b %q", err, a, b)
	}
	for _, text := range []string{`{"a":"1"}`, `{"a":"1","b":null}`, `{"a":"1","b":2}`, `{"a":"1","b":"2","c":"3"}`, `{"a":"1","B":"2"}`, `{"a":"1","b":["2"]}`, `[]`} {
		if err := strictjson.Strings([]byte(text), into); err == nil {
			t.Errorf("Strings(%s) = nil, want an error", text)
		}
	}
}

// FuzzObject: whatever is accepted means the same to encoding/json.
func FuzzObject(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":1}`, `{"a":{"b":[true,null]}} `, `{"a":1,"a":2}`, `{"\u0000":"\ud800"}`, `[`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := strictjson.Object(text)
		if err != nil {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatalf("Object(%q) accepts what is no JSON: %v", text, err)
		}
		if len(got) != len(want) {
			t.Errorf("Object(%q) has %d keys, want %d", text, len(got), len(want))
		}
		for key, value := range want {
			if string(got[key]) != string(value) {
				t.Errorf("Object(%q)[%q] = %s, want %s", text, key, got[key], value)
			}
		}
	})
}
