//! The crate async-openai against `fewbit serve smollm2-135m-instruct`: chat, streaming, tools, enforced forms, embeddings,
//! errors, cancellation. The client parses strictly: an answer that lacks a field is an error.
//!
//! `cargo xtask clients` builds this, starts the server, and runs it with FEWBIT_URL and FEWBIT_KEY set.

use std::error::Error;
use std::time::Duration;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::{
    ChatCompletionMessageToolCalls, ChatCompletionNamedToolChoice, ChatCompletionRequestMessage,
    ChatCompletionRequestSystemMessage, ChatCompletionRequestUserMessage, ChatCompletionStreamOptions,
    ChatCompletionTool, ChatCompletionToolChoiceOption, ChatCompletionTools, CreateChatCompletionRequest,
    CreateChatCompletionRequestArgs, FinishReason, FunctionName, FunctionObject, ResponseFormat,
    ResponseFormatJsonSchema, ToolChoiceOptions,
};
use async_openai::types::embeddings::{CreateEmbeddingRequest, CreateEmbeddingRequestArgs, EncodingFormat};
use futures_util::StreamExt;
use serde_json::{Value, json};

const MODEL: &str = "smollm2-135m-instruct";

type Outcome = Result<(), Box<dyn Error>>;

fn client_with(key: &str) -> Client<OpenAIConfig> {
    let url = std::env::var("FEWBIT_URL").expect("FEWBIT_URL is set");
    Client::with_config(OpenAIConfig::new().with_api_base(url + "/v1").with_api_key(key))
}

fn client() -> Client<OpenAIConfig> {
    client_with(&std::env::var("FEWBIT_KEY").expect("FEWBIT_KEY is set"))
}

/// A request that is not complete.
fn request(question: &str) -> CreateChatCompletionRequestArgs {
    let messages: [ChatCompletionRequestMessage; 2] = [
        ChatCompletionRequestSystemMessage::from("Be brief.").into(),
        ChatCompletionRequestUserMessage::from(question).into(),
    ];
    let mut request = CreateChatCompletionRequestArgs::default();
    request.model(MODEL).messages(messages);
    request
}

fn sky() -> Result<CreateChatCompletionRequest, OpenAIError> {
    request("Why is the sky blue?").max_completion_tokens(24_u32).temperature(0.8).seed(7).build()
}

async fn an_answer_and_its_stream_are_the_same() -> Outcome {
    let whole = client().chat().create(sky()?).await?;
    let usage = whole.usage.ok_or("no usage")?;
    assert_eq!((usage.completion_tokens, usage.total_tokens), (24, usage.prompt_tokens + 24));
    assert_eq!((whole.object.as_str(), whole.model.as_str()), ("chat.completion", MODEL));
    assert_eq!(whole.choices[0].finish_reason, Some(FinishReason::Length));
    let text = whole.choices[0].message.content.clone().ok_or("no text")?;

    let mut streamed = sky()?;
    streamed.stream_options = Some(ChatCompletionStreamOptions { include_usage: Some(true), ..Default::default() });
    let mut stream = client().chat().create_stream(streamed).await?;
    let (mut heard, mut finish, mut counted) = (String::new(), None, None);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if let Some(choice) = chunk.choices.first() {
            heard += choice.delta.content.as_deref().unwrap_or_default();
            finish = finish.or(choice.finish_reason);
        }
        counted = chunk.usage.or(counted);
    }
    assert_eq!((heard, finish), (text, Some(FinishReason::Length)));
    assert_eq!(counted.ok_or("no usage in the stream")?.completion_tokens, 24);
    Ok(())
}

fn weather() -> ChatCompletionTools {
    let parameters = json!({
        "type": "object",
        "properties": { "city": { "type": "string", "enum": ["Paris", "Rome"] } },
        "required": ["city"],
        "additionalProperties": false,
    });
    let function = FunctionObject {
        name: "get_weather".into(),
        description: Some("The weather in a city.".into()),
        parameters: Some(parameters),
        strict: Some(true),
    };
    ChatCompletionTools::Function(ChatCompletionTool { function })
}

async fn tools_are_called_as_demanded() -> Outcome {
    let named = ChatCompletionNamedToolChoice { function: FunctionName { name: "get_weather".into() } };
    let choices = [
        ChatCompletionToolChoiceOption::Mode(ToolChoiceOptions::Required),
        ChatCompletionToolChoiceOption::Function(named),
    ];
    for choice in choices {
        let mut request = request("What is the weather in Paris?");
        request.tools([weather()]).tool_choice(choice).parallel_tool_calls(false).seed(2);
        let answer = client().chat().create(request.build()?).await?;
        assert_eq!(answer.choices[0].finish_reason, Some(FinishReason::ToolCalls));
        let calls = answer.choices[0].message.tool_calls.as_deref().unwrap_or_default();
        let [ChatCompletionMessageToolCalls::Function(call)] = calls else { panic!("{calls:?}") };
        let arguments: Value = serde_json::from_str(&call.function.arguments)?;
        assert!(["Paris", "Rome"].contains(&arguments["city"].as_str().unwrap_or_default()), "{arguments}");

        let mut stream = client().chat().create_stream(request.build()?).await?;
        let (mut id, mut name, mut text, mut finish) = (String::new(), String::new(), String::new(), None);
        while let Some(chunk) = stream.next().await {
            for choice in chunk?.choices {
                finish = finish.or(choice.finish_reason);
                for call in choice.delta.tool_calls.unwrap_or_default() {
                    assert_eq!(call.index, 0);
                    id += &call.id.unwrap_or_default();
                    let function = call.function.ok_or("a delta without a function")?;
                    name += &function.name.unwrap_or_default();
                    text += &function.arguments.unwrap_or_default();
                }
            }
        }
        assert_eq!((name.as_str(), finish), ("get_weather", Some(FinishReason::ToolCalls)));
        assert!(!id.is_empty());
        assert_eq!(serde_json::from_str::<Value>(&text)?, arguments);
    }
    Ok(())
}

async fn a_schema_is_enforced() -> Outcome {
    let schema = json!({
        "type": "object",
        "properties": { "mood": { "enum": ["good", "bad"] }, "stars": { "type": "integer", "minimum": 1, "maximum": 5 } },
        "required": ["mood", "stars"],
        "additionalProperties": false,
    });
    let json_schema = ResponseFormatJsonSchema { name: "review".into(), description: None, schema, strict: Some(true) };
    let mut request = request("Review: a lovely place.");
    request.response_format(ResponseFormat::JsonSchema { json_schema }).seed(3).max_completion_tokens(200_u32);
    let answer = client().chat().create(request.build()?).await?;
    let value: Value = serde_json::from_str(answer.choices[0].message.content.as_deref().ok_or("no text")?)?;
    assert!(["good", "bad"].contains(&value["mood"].as_str().unwrap_or_default()), "{value}");
    assert!((1..=5).contains(&value["stars"].as_i64().unwrap_or_default()), "{value}");
    // What cannot be enforced is refused, with its place.
    let schema = json!({ "type": "string", "pattern": "(?=a)b" });
    let json_schema = ResponseFormatJsonSchema { name: "odd".into(), description: None, schema, strict: Some(true) };
    let refused = request.response_format(ResponseFormat::JsonSchema { json_schema }).build()?;
    let (status, kind, param) = error(client().chat().create(refused).await)?;
    assert_eq!(
        (status, kind.as_str(), param.as_deref()),
        (400, "invalid_request_error", Some("response_format.json_schema.schema"))
    );
    Ok(())
}

async fn log_probabilities_come_with_their_tokens() -> Outcome {
    let mut request = request("Why is the sky blue?");
    request.logprobs(true).top_logprobs(2_u8).max_completion_tokens(5_u32).n(2_u8).seed(1);
    let answer = client().chat().create(request.build()?).await?;
    assert_eq!(answer.choices.len(), 2);
    for choice in answer.choices {
        let tokens = choice.logprobs.and_then(|logprobs| logprobs.content).ok_or("no log probabilities")?;
        assert_eq!(tokens.len(), 5);
        assert!(tokens.iter().all(|token| token.logprob <= 0.0 && token.top_logprobs.len() == 2));
    }
    Ok(())
}

async fn embeddings_are_the_same_in_both_encodings() -> Outcome {
    let request = CreateEmbeddingRequestArgs::default().model(MODEL).input(["The sky", "The sea"]).build()?;
    let embedded = client().embeddings().create(request.clone()).await?;
    assert_eq!(embedded.data.iter().map(|of| of.index).collect::<Vec<_>>(), [0, 1]);
    assert!(embedded.usage.prompt_tokens > 0 && embedded.data[0].embedding != embedded.data[1].embedding);
    let in_base64 = CreateEmbeddingRequest { encoding_format: Some(EncodingFormat::Base64), ..request };
    let encoded = client().embeddings().create_base64(in_base64).await?;
    for (plain, encoded) in embedded.data.into_iter().zip(encoded.data) {
        let decoded: Vec<f32> = encoded.embedding.into();
        assert_eq!(plain.embedding, decoded);
    }
    Ok(())
}

/// The status, type and field of an error of the server.
fn error<T>(result: Result<T, OpenAIError>) -> Result<(u16, String, Option<String>), Box<dyn Error>> {
    match result {
        Err(OpenAIError::ApiError(error)) => {
            let api = error.api_error;
            Ok((error.status_code.as_u16(), api.r#type.ok_or("an error without a type")?, api.param))
        }
        Err(other) => Err(other.into()),
        Ok(_) => Err("it was answered".into()),
    }
}

async fn errors_have_their_types() -> Outcome {
    let wrong_key = client_with("wrong").chat().create(sky()?).await;
    assert_eq!(error(wrong_key)?, (401, "authentication_error".into(), None));
    let unknown = client().chat().create(CreateChatCompletionRequest { model: "gpt".into(), ..sky()? }).await;
    assert_eq!(error(unknown)?, (404, "invalid_request_error".into(), Some("model".into())));
    let hot = CreateChatCompletionRequest { temperature: Some(-3.0), ..sky()? };
    assert_eq!(error(client().chat().create(hot.clone()).await)?.0, 400);
    // A stream is refused before it begins as well.
    let refused = client().chat().create_stream(hot).await;
    let first = match refused {
        Ok(mut stream) => stream.next().await.ok_or("an empty stream")?.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(first.is_err());
    Ok(())
}

async fn a_client_that_goes_away_does_not_block_others() -> Outcome {
    // Without the tokens that end an answer, it fills the whole context.
    let ends = ["0", "2"].map(|token| (token.to_owned(), -100_i8));
    let endless = request("Count to a million.").logit_bias(std::collections::HashMap::from(ends)).build()?;
    let late = tokio::time::timeout(Duration::from_millis(100), client().chat().create(endless)).await;
    assert!(late.is_err(), "it was answered in time");
    client().chat().create(sky()?).await?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    macro_rules! run {
        ($($test:ident),* $(,)?) => {$(
            eprintln!("{}", stringify!($test));
            $test().await?;
        )*};
    }
    run!(
        an_answer_and_its_stream_are_the_same,
        tools_are_called_as_demanded,
        a_schema_is_enforced,
        log_probabilities_come_with_their_tokens,
        embeddings_are_the_same_in_both_encodings,
        errors_have_their_types,
        a_client_that_goes_away_does_not_block_others,
    );
    Ok(())
}
