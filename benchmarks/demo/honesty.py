"""What the demo says to what it does not know, and questions of that kind."""

from __future__ import annotations

import numpy as np

from benchmarks.demo.words import listed

UNKNOWN = (
    "I am only a small demo model: I know colored shapes, small sums, names and a few poems. "
    "Load moondream/moondream3-preview for more."
)
NO_SHAPES = "I see no shapes here. " + UNKNOWN

ABSENT_THINGS = listed(
    "dog cat car person tree house face bird phone cup chair table book flower boat bicycle horse train plane bus "
    "bottle hat shoe door window cloud mountain road sign lamp clock laptop keyboard sofa bed apple banana pizza cake "
    "sheep cow elephant bear zebra giraffe umbrella ball kite"
)

_TOPICS = listed(
    "France Japan Brazil Germany Kenya Canada Egypt India Norway Peru the_weather the_sun gravity light water history "
    "chess football tennis music jazz opera cooking bread cheese pizza dogs cats horses whales birds insects trees "
    "engines cars trains rockets planes ships bridges computers software Python Java databases networks electricity "
    "magnets atoms chemistry biology medicine vaccines physics quantum_mechanics black_holes the_ocean volcanoes "
    "earthquakes climate_change politics elections law taxes money banks stocks gold oil philosophy religion love "
    "happiness sleep dreams memory the_brain the_heart school teachers exams Paris London Rome Berlin Tokyo Einstein "
    "Newton Shakespeare Mozart Napoleon Picasso democracy the_internet robots evolution dinosaurs the_stock_market"
)
_HELD_OUT_TOPICS = listed(
    "Spain Italy Mexico China rugby piano tea coffee snakes satellites glaciers poetry Plato Darwin"
)

_QUESTIONS = (
    "What is the capital of {}?",
    "Tell me about {}.",
    "Explain {}.",
    "Explain {} to a child.",
    "Who invented {}?",
    "Why is {} important?",
    "What is {}?",
    "How does {} work?",
    "What do you think about {}?",
    "Write an essay about {}.",
    "Write a story about {}.",
    "Give me three facts about {}.",
    "Translate {} into French.",
    "How do you spell {} in German?",
    "Who is the best at {}?",
    "What is the history of {}?",
    "When was {} founded?",
    "Where can I learn about {}?",
    "What is the meaning of {}?",
    "Is {} dangerous?",
    "How much does {} cost?",
    "Summarize the history of {}.",
    "Can you help me with {}?",
    "What are the rules of {}?",
    "Do you like {}?",
    "Recommend a book about {}.",
    "Who was the first president of {}?",
    "What is the population of {}?",
    "Write a Python function for {}.",
    "Write code that draws {}.",
)
_FIXED = (
    "What time is it?",
    "What is the weather today?",
    "Who won the world cup?",
    "Tell me a joke.",
    "What is the meaning of life?",
    "Write a Python program that sorts a list.",
    "How do I bake a cake?",
    "Who is the president?",
    "What day is it?",
    "Where are you from?",
    "How tall is the Eiffel Tower?",
    "Can you speak Spanish?",
    "Translate this into French: good morning.",
    "Fix this code for me.",
    "What should I eat tonight?",
    "Sing a song.",
    "What is the speed of light?",
    "Why is the sky blue?",
    "Give me a recipe for soup.",
    "Who wrote Hamlet?",
    "What is the square root of 144?",
    "Solve x * x = 9.",
    "What is 12 * 12?",
    "What is 100 / 4?",
)
_PICTURE_QUESTIONS = (
    "Is the person smiling?",
    "What does the sign say?",
    "What is the man doing?",
    "What breed is this dog?",
    "Read the text in the image.",
    "Where was this photo taken?",
    "What is the person wearing?",
    "How old is she?",
    "What brand is the car?",
    "What time is on the clock?",
    "Is it sunny?",
    "What is on the table?",
    "What food is this?",
    "Who is in the picture?",
    "What is written here?",
    "Which city is this?",
    "What is the weather like?",
    "Is this a photo or a painting?",
    "What is the animal doing?",
    "Who painted this?",
)


def odd_question(draw: np.random.Generator, *, held_out: bool = False) -> str:
    """Something the demo has not learned; with `held_out`, about a topic that training never names."""
    if not held_out and draw.random() < 0.25:
        return _FIXED[int(draw.integers(len(_FIXED)))]
    topics = _HELD_OUT_TOPICS if held_out else _TOPICS
    topic = topics[int(draw.integers(len(topics)))]
    return _QUESTIONS[int(draw.integers(len(_QUESTIONS)))].format(topic)


def odd_picture_question(draw: np.random.Generator) -> str:
    return _PICTURE_QUESTIONS[int(draw.integers(len(_PICTURE_QUESTIONS)))]
