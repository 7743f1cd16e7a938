"""The words that text overlays repeat: 200 short, common English nouns."""

from __future__ import annotations

_TEXT = """
apple arrow autumn baker ball banjo barn basket beach bell berry bicycle bird blanket boat bone book bottle bowl
branch bread brick bridge broom brush bucket button cabin cable cake camel camera candle canyon carpet castle cave
chain chair chalk cherry chess circle city cliff clock cloud clover coast coat coffee coin comet copper coral cotton
cousin crane crown cup curtain daisy dance desert desk diamond dinner doctor donkey door dragon drawer dream drum
eagle earth elbow engine evening farm feather fence fiddle field finger fire fish flag flower flute fog forest
fountain fox friend frog garden garlic gate giant ginger glass glove goose grape grass guitar hammer harbor harvest
hat hazel hero hill honey horse hotel house iron island ivory jacket jewel juice jungle kettle kitchen kite ladder
lake lamp leaf lemon letter lily lion lizard lunch magnet maple marble market meadow melon milk mirror monkey moon
morning moth mountain mouse museum music needle nest night north nurse ocean olive onion orange orchard otter owl
paper parrot path pebble pencil pepper piano pillow pine planet plate pocket poem pond potato prairie prince pumpkin
puzzle queen rabbit radio rain ribbon rice ring river road robin rocket rope rose sail salt
"""

WORDS = tuple(_TEXT.split())
