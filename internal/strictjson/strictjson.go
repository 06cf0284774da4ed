// Package strictjson reads JSON objects of the wire without the leniencies of encoding/json: keys are compared exactly
// and may occur only once, the text is UTF-8, and nothing follows the object. Two programs that read the same text
// differently are how a signed or checked document comes to mean something else (RFC 8259 section 4, RFC 7493).
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Object reads one object. The values are left as they are: an object among them needs a call of its own. An error
// never repeats a value, which may be a secret, and of a key only its beginning.
func Object(text []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("JSON: not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("JSON: an object is expected")
	}
	fields := make(map[string]json.RawMessage)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, errors.New("JSON: a key is expected")
		}
		key, ok := t.(string)
		if !ok {
			return nil, errors.New("JSON: a key is expected")
		}
		if _, twice := fields[key]; twice {
			return nil, fmt.Errorf("JSON: key %.64q occurs twice", key)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, fmt.Errorf("JSON: the value of key %.64q cannot be read", key)
		}
		fields[key] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("JSON: the object does not end")
	}
	if len(bytes.TrimLeft(text[d.InputOffset():], " \t\r\n")) > 0 {
		return nil, errors.New("JSON: text after the end")
	}
	return fields, nil
}

// Strings reads an object that has strings for values and no other keys than those of into, each of which it must have.
func Strings(text []byte, into map[string]*string) error {
	fields, err := Object(text)
	if err != nil {
		return err
	}
	for key := range fields {
		if into[key] == nil {
			return fmt.Errorf("JSON: unknown key %.64q", key)
		}
	}
	for key, to := range into {
		value := fields[key]
		// null would leave the string as it is, without an error.
		if len(value) == 0 || value[0] != '"' || json.Unmarshal(value, to) != nil {
			return fmt.Errorf("JSON: key %q must be a string", key)
		}
	}
	return nil
}
