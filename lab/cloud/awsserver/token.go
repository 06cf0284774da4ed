package awsserver

import (
	"encoding/base64"
	"encoding/json"
)

// pageToken is what an opaque token of a List call holds: the last item of the page before, and the call it belongs to.
type pageToken struct {
	Operation string `json:"o"`
	After     string `json:"a"`
}

// PageToken makes the token with which the caller asks for what follows the item.
func (r *Request) PageToken(after string) string {
	raw, _ := json.Marshal(pageToken{r.Operation, after}) // two strings always encode
	return base64.RawURLEncoding.EncodeToString(raw)
}

// ReadPageToken returns the item after which a page begins, "" for the first. It reports false for a token that was not given
// out by this call.
func (r *Request) ReadPageToken(token string) (after string, ok bool) {
	if token == "" {
		return "", true
	}
	var t pageToken
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || json.Unmarshal(raw, &t) != nil || t.Operation != r.Operation {
		return "", false
	}
	return t.After, true
}
