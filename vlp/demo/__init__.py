"""The demo page: ask about a photo, search by words or by picture, see what each word looks at. Needs no internet."""
